-- Fifteen minutes after its scheduled arrival it is known whether a flight is late: it has landed by then, or it has not.
select tailnum, known_at as event_timestamp,
  cast(sum(flown) over w as int) as legs_1d,
  cast(sum(late) over w as int) as late_legs_1d,
  cast(sum(late) over w as double) / cast(sum(flown) over w as double) as late_share_1d,
  last_minutes
from (
  select tailnum, known_at, count(*) as flown, sum(case when late then 1 else 0 end) as late, max(minutes) as last_minutes
  from (
    select tailnum, late, scheduled_minutes as minutes,
      event_timestamp + cast(concat(cast(scheduled_minutes + 15 as bigint), ' minutes') as interval) as known_at
    from source
    where tailnum is not null and late is not null
  ) as landed
  group by tailnum, known_at
) as moments
window w as (partition by tailnum order by known_at range between interval '1 day' preceding and current row)

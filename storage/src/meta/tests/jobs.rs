//! Jobs: begun, done chunk by chunk, ended once; and which versions are served.

use super::*;
use cairn_proto::record::v1::job::Kind as Work;
use cairn_proto::record::v1::{
    Backfill, BeginJob, ChangeJob, ChunkRange, FileSource, Job, JobState, RecordChunk, RecordSource, SourceFile,
};
use proptest::prelude::*;

fn filled_view(name: &str, features: &[&str]) -> Definition {
    let Some(Kind::FeatureView(view)) = view(name, 0, features).kind else { panic!() };
    let files = Some(FileSource { path: "/data".to_owned(), ..Default::default() });
    of(Kind::FeatureView(FeatureView { files, ..view }))
}

fn begin(view: &str, from_us: i64, to_us: i64, chunk_us: i64) -> Change {
    let fill =
        Backfill { view: view.to_owned(), from_us, to_us, chunk_us, lanes: 2, batch_rows: 10, ..Default::default() };
    let job = Job {
        project: "p".to_owned(),
        author: "ann".to_owned(),
        kind: Some(Work::Backfill(fill)),
        ..Default::default()
    };
    Change::BeginJob(BeginJob { job: Some(job) })
}

fn state(id: u64, state: JobState, expected_revision: u64) -> Change {
    Change::ChangeJob(ChangeJob { id, state: state as i32, message: "why".to_owned(), expected_revision })
}

fn chunk(id: u64, chunk: u32, rows: u64) -> Change {
    Change::RecordChunk(RecordChunk { id, node: 7, chunk, rows, newest: false })
}

fn source(id: u64, size: u64) -> Change {
    let file = SourceFile { path: "/data/a.csv".to_owned(), size, content: vec![1; 32].into() };
    Change::RecordSource(RecordSource { id, node: 7, files: vec![file] })
}

fn job(outcome: Outcome) -> Job {
    match outcome {
        Outcome::Job(job) => job,
        other => panic!("{other:?}"),
    }
}

fn fill(job: &Job) -> &Backfill {
    match &job.kind {
        Some(Work::Backfill(fill)) => fill,
        None => panic!("no backfill"),
    }
}

/// The last chunk of a job that loads is recorded once somebody says that everything else can be read.
#[test]
fn a_job_that_loads_ends_with_its_newest_rows() {
    let bench = Bench::new();
    bench.define(&[driver(), filled_view("stats", &["a"])]);
    let Change::BeginJob(BeginJob { job: Some(mut asked) }) = begin("stats", 0, 10, 5) else { panic!() };
    let Some(Work::Backfill(fill)) = &mut asked.kind else { panic!() };
    fill.loads = true;
    let change = Change::BeginJob(BeginJob { job: Some(asked) });
    assert_eq!((version_of(&change), version_of(&begin("stats", 0, 10, 5))), (3, 1));
    let id = job(bench.ok(change)).id;
    bench.ok(chunk(id, 1, 7));
    bench.refused(chunk(id, 0, 7), "conflict", "is the last one of job");
    let Change::RecordChunk(last) = chunk(id, 0, 7) else { panic!() };
    let newest = Change::RecordChunk(RecordChunk { newest: true, ..last });
    assert_eq!(version_of(&newest), 3);
    assert_eq!(job(bench.ok(newest)).state(), JobState::Done);
}

#[test]
fn a_backfill_goes_from_its_beginning_to_done() {
    let bench = Bench::new();
    bench.define(&[driver(), view("rides", 0, &["a"]), filled_view("stats", &["a"])]);
    bench.refused(begin("rides", 0, 10, 3), "invalid_argument", "has no files to be filled from");
    bench.refused(begin("stat", 0, 10, 3), "not_found", "stats");
    bench.refused(begin("stats", 10, 10, 3), "invalid_argument", "`from` is not before `to`");
    bench.refused(begin("stats", i64::MIN, i64::MAX, 3), "invalid_argument", "`from` is not before `to`");
    bench.refused(begin("stats", 0, 10, 0), "invalid_argument", "no length");
    bench.refused(begin("stats", 0, 1 << 40, 1), "invalid_argument", "more than 100000 chunks");
    let begun = job(bench.ok(begin("stats", 0, 10, 3)));
    let id = begun.id;
    assert_eq!((chunk_count(fill(&begun)), begun.state(), begun.revision), (4, JobState::Running, id));
    bench.refused(begin("stats", 9, 20, 3), "conflict", &format!("job {id} fills feature view `stats`"));
    let other = job(bench.ok(begin("stats", 10, 20, 5))).id;
    bench.ok(source(id, 5));
    assert_eq!(job(bench.ok(source(id, 5))).node, 7);
    bench.refused(source(id, 6), "conflict", "reads other files");
    bench.refused(chunk(id, 4, 1), "invalid_argument", "has chunks 0 to 3, not 4");
    bench.ok(chunk(id, 1, 10));
    bench.ok(chunk(id, 3, 10));
    bench.ok(chunk(id, 3, 99));
    let half = job(bench.ok(chunk(id, 0, 10)));
    assert_eq!(fill(&half).done, [ChunkRange { first: 0, last: 1 }, ChunkRange { first: 3, last: 3 }]);
    assert_eq!(missing_chunks(fill(&half)).collect::<Vec<_>>(), [2]);
    let done = job(bench.ok(chunk(id, 2, 10)));
    assert_eq!((done.state(), fill(&done).rows), (JobState::Done, 40));
    assert_eq!(fill(&done).done, [ChunkRange { first: 0, last: 3 }]);
    bench.refused(chunk(id, 2, 10), "conflict", "has ended: it is done");
    bench.refused(state(id, JobState::Cancelling, 0), "conflict", "has ended");
    let bench = bench.restart();
    assert_eq!(**bench.meta.catalog().job(id).unwrap(), done);
    assert_eq!(bench.meta.catalog().jobs().map(|job| job.id).collect::<Vec<_>>(), [id, other]);
}

#[test]
fn a_late_driver_undoes_nothing() {
    let bench = Bench::new();
    bench.define(&[driver(), filled_view("stats", &["a"])]);
    let id = job(bench.ok(begin("stats", 0, 10, 1))).id;
    bench.ok(state(id, JobState::Paused, 0));
    let resumed = job(bench.ok(state(id, JobState::Running, 0)));
    assert_eq!(resumed.message, "");
    bench.refused(state(id, JobState::Failed, id), "conflict", "changed its state since");
    bench.refused(state(id, JobState::Done, 0), "conflict", "is running and cannot become done");
    bench.ok(state(id, JobState::Cancelling, 0));
    bench.refused(state(id, JobState::Running, 0), "conflict", "cannot become running");
    (0..10).for_each(|at| drop(bench.ok(chunk(id, at, 1))));
    assert_eq!(bench.meta.catalog().job(id).unwrap().state(), JobState::Cancelling, "cancelled, though all is done");
    assert_ne!(job(bench.ok(state(id, JobState::Cancelled, 0))).ended_us, 0);
    bench.refused(chunk(id, 1, 1), "conflict", "has ended: it is cancelled");
}

#[test]
fn the_oldest_jobs_that_have_ended_are_let_go() {
    let bench = Bench::new();
    bench.define(&[driver(), filled_view("stats", &["a"])]);
    let open = job(bench.ok(begin("stats", 0, 1, 1))).id;
    let mut ids = Vec::new();
    for _ in 0..=JOBS_MAX {
        let id = job(bench.ok(begin("stats", 5, 6, 1))).id;
        bench.ok(chunk(id, 0, 1));
        ids.push(id);
    }
    let catalog = bench.meta.catalog();
    assert_eq!(catalog.jobs().count(), JOBS_MAX);
    assert!(catalog.job(open).is_ok() && catalog.job(ids[0]).is_err() && catalog.job(ids[1]).is_err());
    assert_eq!(catalog.jobs().last().unwrap().id, *ids.last().unwrap());
    assert_eq!(&*catalog, &rebuilt(&bench.meta));
    let after = catalog.jobs().map(|job| job.id).max().unwrap();
    (0..99).for_each(|at| drop(bench.ok(begin("stats", 100 + at, 101 + at, 1))));
    bench.refused(begin("stats", 300, 301, 1), "conflict", "100 jobs have not ended");
    assert!(bench.meta.catalog().jobs().all(|job| job.id <= after || job.ended_us == 0));
}

#[test]
fn a_version_is_served_when_it_is_filled() {
    let bench = Bench::new();
    bench.define(&[
        driver(),
        filled_view("stats", &["a"]),
        view("rides", 0, &["x"]),
        on_demand("ratios", &["stats:a"]),
        service("eta", &["stats", "rides", "ratios"]),
    ]);
    let served = || {
        let catalog = bench.meta.catalog();
        let project = catalog.project("p").unwrap();
        (
            project.served_feature_view("stats").map_or(0, |view| view.version),
            project.served_on_demand_feature_view("ratios").map_or(0, |view| view.version),
            project.served_feature_service("eta").map_or(0, |service| service.version),
        )
    };
    let backfill = || {
        let id = job(bench.ok(begin("stats", 0, 1, 1))).id;
        bench.ok(chunk(id, 0, 1));
    };
    assert_eq!(served(), (0, 0, 0));
    let catalog = bench.meta.catalog();
    let project = catalog.project("p").unwrap();
    let told = project.served_feature_service("eta").unwrap_err().to_string();
    assert!(told.contains("`cairn backfill stats` fills it, `eta@1` reads what is there"), "{told}");
    assert!(project.resolve_served(&["stats"]).is_err());
    assert_eq!(project.resolve_served(&["stats@1", "rides"]).unwrap().len(), 2);
    assert_eq!(project.resolve(&["stats"]).unwrap()[0].view_version, 1);
    let before = project.catalog_version();
    backfill();
    assert_eq!(served(), (1, 1, 1));
    let after = bench.meta.catalog().project("p").unwrap().catalog_version();
    assert!(after > before, "plans are made again");
    backfill();
    assert_eq!(
        bench.meta.catalog().project("p").unwrap().catalog_version(),
        after,
        "nothing is switched the second time"
    );

    // A new schema: those before are served until it is filled.
    bench.define(&[
        filled_view("stats", &["a", "b"]),
        on_demand("ratios", &["stats:a"]),
        service("eta", &["stats", "rides", "ratios"]),
    ]);
    assert_eq!(served(), (1, 1, 1));
    assert_eq!(bench.meta.catalog().project("p").unwrap().resolve_served(&["stats"]).unwrap().len(), 1);
    backfill();
    assert_eq!(served(), (2, 2, 2));
    // Another ttl shares the rows.
    let Some(Kind::FeatureView(longer)) = filled_view("stats", &["a", "b"]).kind else { panic!() };
    bench.define(&[of(Kind::FeatureView(FeatureView { ttl_us: 9, ..longer }))]);
    assert_eq!(served().0, 3);
    assert_eq!(&*bench.meta.catalog(), &rebuilt(&bench.meta));
}

#[test]
fn rows_that_came_another_way_wait_for_nothing() {
    let bench = Bench::new();
    bench.define(&[driver(), view("stats", 0, &["a"])]);
    bench.define(&[filled_view("stats", &["a"])]);
    let served = || bench.meta.catalog().project("p").unwrap().served_feature_view("stats").unwrap().version;
    assert_eq!(served(), 2, "its rows are those of version 1");
    bench.define(&[filled_view("stats", &["b"])]);
    assert_eq!(served(), 2);
    bench.define(&[view("stats", 0, &["b"])]);
    assert_eq!(served(), 4, "without files nobody can fill it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever comes, late, twice and out of order: states follow each other as they may, an end is the end, and rows are those
    /// of the chunks that are done, each counted once.
    #[test]
    fn any_order_of_commands_is_a_legal_history(
        steps in prop::collection::vec((0u8..10, 0u32..6, prop::option::of(0usize..8)), 1..80)
    ) {
        use JobState::{Cancelled, Cancelling, Done, Failed, Paused, Running};
        let bench = Bench::new();
        bench.define(&[driver(), filled_view("stats", &["a"])]);
        let begun = job(bench.ok(begin("stats", 0, 5, 1)));
        let id = begun.id;
        let mut revisions = vec![begun.revision];
        let mut before = begun;
        for (what, at, revision) in steps {
            let expected = revision.and_then(|at| revisions.get(at).copied()).unwrap_or(0);
            let change = match what {
                0 => state(id, Paused, expected),
                1 => state(id, Running, expected),
                2 if at == 0 => state(id, Cancelling, expected),
                3 => state(id, Cancelled, expected),
                4 if at == 0 => state(id, Failed, expected),
                5 => state(id, Done, expected),
                6 => source(id, u64::from(at / 3)),
                _ => chunk(id, at, 10),
            };
            let of_state = matches!(change, Change::ChangeJob(_));
            bench.ask(change);
            let after = Job::clone(bench.meta.catalog().job(id).unwrap());
            if before.ended_us != 0 {
                prop_assert_eq!(&after, &before, "an end is the end");
            }
            if after.state() != before.state() {
                let legal = matches!(
                    (before.state(), after.state()),
                    (Running, Paused | Cancelling | Failed | Done) | (Paused, Running | Cancelling | Done)
                        | (Cancelling, Cancelled | Failed)
                );
                prop_assert!(legal, "{:?} to {:?}", before.state(), after.state());
                prop_assert!(after.revision > before.revision);
                revisions.push(after.revision);
                prop_assert!(expected == 0 || !of_state || expected == before.revision);
            }
            let done: u64 = fill(&after).done.iter().map(|range| u64::from(range.last - range.first) + 1).sum();
            prop_assert_eq!(fill(&after).rows, done * 10);
            prop_assert_eq!(done + missing_chunks(fill(&after)).count() as u64, 5);
            prop_assert!(fill(&after).done.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
            prop_assert!(fill(&before).files.is_empty() || fill(&after).files == fill(&before).files);
            prop_assert_eq!(after.ended_us != 0, matches!(after.state(), Cancelled | Failed | Done));
            before = after;
        }
        let served = bench.meta.catalog().project("p").unwrap().served_feature_view("stats").is_ok();
        prop_assert_eq!(served, before.state() == Done);
        prop_assert_eq!(&*bench.meta.catalog(), &rebuilt(&bench.meta));
    }
}

//! Links break, one direction or both, or become slow.

use super::minority;
use crate::Result;
use crate::fleet::Fleet;
use crate::net::Shape;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Shapes the network until mended; says how, or `None` where so few nodes cannot be cut like that.
pub async fn strike(kind: &str, fleet: &Fleet, random: &mut StdRng) -> Result<Option<String>> {
    // Of three nodes, each has only neighbours.
    if kind == "ring" && fleet.size() < 4 {
        return Ok(None);
    }
    let mut all: Vec<usize> = (0..fleet.size()).collect();
    all.shuffle(random);
    let how = match kind {
        "majority" => {
            let (few, many) = all.split_at(minority(fleet));
            apart(fleet, few, many)?;
            format!("{} | {}", fleet.names(few), fleet.names(many))
        }
        "leader-alone" => {
            let leader = fleet.leader().await.unwrap_or(all[0]);
            let others = without(&all, leader);
            apart(fleet, &[leader], &others)?;
            format!("{} | {}", fleet.name(leader), fleet.names(&others))
        }
        "one-way" => {
            let one = if random.random() { fleet.leader().await.unwrap_or(all[0]) } else { all[0] };
            let others = without(&all, one);
            let speaks: bool = random.random();
            match speaks {
                true => fleet.cut(&others, &[one])?,
                false => fleet.cut(&[one], &others)?,
            }
            format!("{} {}", fleet.name(one), if speaks { "hears nobody" } else { "is not heard" })
        }
        "bridge" => {
            let (bridge, sides) = all.split_at(1);
            let (left, right) = sides.split_at(sides.len() / 2);
            apart(fleet, left, right)?;
            format!("{} | {}, both see {}", fleet.names(left), fleet.names(right), fleet.names(bridge))
        }
        "ring" => {
            // Each node sees its neighbours only: of five, every one still sees a majority, and no two the same.
            let count = all.len();
            for place in 0..count {
                for step in 2..count.saturating_sub(1) {
                    fleet.cut(&[all[place]], &[all[(place + step) % count]])?;
                }
            }
            format!("{}, each sees its neighbours", fleet.names(&all))
        }
        "delay" => {
            let shape = Shape {
                delay_ms: random.random_range(5..200),
                jitter_ms: random.random_range(0..200),
                ..Shape::default()
            };
            some_links(fleet, random, &all, shape)?
        }
        "loss" => {
            let shape = Shape { loss_percent: random.random_range(2..30), ..Shape::default() };
            some_links(fleet, random, &all, shape)?
        }
        _ => {
            let shape = Shape { bytes_per_s: random.random_range(4_000..200_000), delay_ms: 5, ..Shape::default() };
            some_links(fleet, random, &all, shape)?
        }
    };
    Ok(Some(how))
}

fn without(all: &[usize], one: usize) -> Vec<usize> {
    all.iter().copied().filter(|&at| at != one).collect()
}

fn apart(fleet: &Fleet, left: &[usize], right: &[usize]) -> Result<()> {
    fleet.cut(left, right)?;
    fleet.cut(right, left)
}

/// All links, or those of one node.
fn some_links(fleet: &Fleet, random: &mut StdRng, all: &[usize], shape: Shape) -> Result<String> {
    let whose = if random.random() { all } else { &all[..1] };
    fleet.shape(whose, all, shape)?;
    fleet.shape(all, whose, shape)?;
    Ok(format!(
        "links of {}: {} ms + {} ms, {} % lost, {} B/s",
        fleet.names(whose),
        shape.delay_ms,
        shape.jitter_ms,
        shape.loss_percent,
        shape.bytes_per_s
    ))
}

use std::sync::mpsc::{Receiver, Sender, channel};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, Float32Array};

use super::*;
use crate::DataType;
use crate::model::{Signature, TensorSpec};
use crate::plan::Plan;
use crate::value::{Data, HostTensor};

/// A model of one column that adds the number of rows in its batch, after `gate` is open: its sender gone.
fn counting(gate: Receiver<()>, started: Sender<()>) -> Arc<Model> {
    let (gate, started) = (Mutex::new(gate), Mutex::new(started));
    let plan = Plan::of_kernel(Box::new(move |inputs| {
        started.lock().send(()).ok();
        gate.lock().recv().ok();
        let mut x = inputs.into_iter().flatten().next().ok_or("no input")?.into_host();
        let rows = x.dims[0] as f32;
        if let Data::Fp32(values) = &mut x.data {
            if values.contains(&-1.0) {
                return Err("minus one".to_owned());
            }
            values.iter_mut().for_each(|value| *value += rows);
        }
        Ok(smallvec::smallvec![x.into()])
    }));
    let spec = |name: &str| TensorSpec { name: name.to_owned(), datatype: DataType::Fp32, shape: vec![-1, 1] };
    Arc::new(Model::of_plan(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] }, plan))
}

fn batch(values: Vec<f32>) -> RecordBatch {
    RecordBatch::try_from_iter([("x", Arc::new(Float32Array::from(values)) as ArrayRef)]).unwrap()
}

fn values(batch: &RecordBatch) -> Vec<f32> {
    batch.column(0).as_primitive::<Float32Type>().values().to_vec()
}

fn one_thread() -> Executor {
    let inline_below = Duration::ZERO;
    Executor::new(Options { threads: 1, queue_rows_max: 6, batch_rows_max: 4, inline_below, ..Options::default() })
        .unwrap()
}

/// Waits for something that another task does, without a clock.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_queued_share_a_batch_and_a_full_queue_refuses() {
    let executor = Arc::new(one_thread());
    let ((closed, gate), (sender, started)) = (channel(), channel());
    let model = counting(gate, sender);
    let run = |values: Vec<f32>| {
        let (executor, model) = (executor.clone(), model.clone());
        tokio::spawn(async move { executor.run(&model, batch(values)).await })
    };
    let first = run(vec![10.0]);
    started.recv().unwrap(); // the thread is busy with the first
    let second = run(vec![20.0, 21.0]);
    until(|| executor.queued_rows() == 2).await;
    let third = run(vec![30.0]);
    until(|| executor.queued_rows() == 3).await;
    let large = run(vec![40.0; 3]);
    until(|| executor.queued_rows() == 6).await;
    let refused = run(vec![50.0]).await.unwrap();
    assert_eq!(refused, Err(RunError::Overloaded { queued: 6, limit: 6 }));
    drop(closed);
    // The second and third ran together, as three rows; the large one would have made it six.
    assert_eq!(values(&first.await.unwrap().unwrap()), [11.0]);
    assert_eq!(values(&second.await.unwrap().unwrap()), [23.0, 24.0]);
    assert_eq!(values(&third.await.unwrap().unwrap()), [33.0]);
    assert_eq!(values(&large.await.unwrap().unwrap()), [43.0; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_asks_for_it_has_its_batch_alone() {
    let executor = Arc::new(one_thread());
    let ((closed, gate), (sender, started)) = (channel(), channel());
    let model = counting(gate, sender);
    let run = |values: Vec<f32>, alone: bool| {
        let (executor, model) = (executor.clone(), model.clone());
        tokio::spawn(async move {
            match alone {
                true => executor.run_alone(&model, batch(values)).await,
                false => executor.run(&model, batch(values)).await,
            }
        })
    };
    let first = run(vec![0.0], false);
    started.recv().unwrap(); // the thread is busy with the first
    let mut waiting = Vec::new();
    for (at, alone) in [true, false, true, false].into_iter().enumerate() {
        waiting.push(run(vec![0.0], alone));
        until(|| executor.queued_rows() == at + 1).await;
    }
    drop(closed);
    assert!(first.await.unwrap().is_ok());
    let mut rows = Vec::new();
    for answer in waiting {
        rows.push(values(&answer.await.unwrap().unwrap())[0]);
    }
    assert_eq!(rows, [1.0, 2.0, 1.0, 2.0], "the two others shared one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_request_does_not_spoil_its_batch() {
    let executor = Arc::new(one_thread());
    let ((closed, gate), (sender, started)) = (channel(), channel());
    let model = counting(gate, sender);
    let run = |values: Vec<f32>| {
        let (executor, model) = (executor.clone(), model.clone());
        tokio::spawn(async move { executor.run(&model, batch(values)).await })
    };
    let first = run(vec![0.0]);
    started.recv().unwrap();
    let bad = run(vec![-1.0]);
    until(|| executor.queued_rows() == 1).await;
    let good = run(vec![5.0]);
    until(|| executor.queued_rows() == 2).await;
    drop(closed);
    assert!(first.await.unwrap().is_ok());
    assert_eq!(bad.await.unwrap(), Err(RunError::Step { node: "only".to_owned(), reason: "minus one".to_owned() }));
    assert_eq!(values(&good.await.unwrap().unwrap()), [6.0]);
}

#[tokio::test]
async fn short_runs_stay_on_the_callers_thread() {
    let options = Options { threads: 1, inline_below: Duration::from_secs(1000), ..Options::default() };
    let executor = Executor::new(options).unwrap();
    let plan = Plan::of_kernel(Box::new(|inputs| {
        let name = std::thread::current().name().unwrap_or("").starts_with("model-");
        let rows = inputs[0].as_ref().map_or(0, |value| value.dims()[0]);
        Ok(smallvec::smallvec![HostTensor::of_f32(&[rows], vec![f32::from(u8::from(name)); rows]).into()])
    }));
    let spec = |name: &str| TensorSpec { name: name.to_owned(), datatype: DataType::Fp32, shape: vec![-1, 1] };
    let model = Arc::new(Model::of_plan(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] }, plan));
    // Nothing is known of the first run, so a thread takes it.
    assert_eq!(values(&executor.run(&model, batch(vec![0.0])).await.unwrap()), [1.0]);
    assert_eq!(values(&executor.run(&model, batch(vec![0.0])).await.unwrap()), [0.0]);
}

#[test]
fn the_cache_keeps_what_was_used_last() {
    let bytes = |name: &str| -> Bytes {
        let path = crate::tests::golden::folder().join(format!("{name}.onnx"));
        std::fs::read(path).unwrap().into()
    };
    let size = Model::load(bytes("mlp"), &Limits::default()).unwrap().memory_bytes();
    let executor = Executor::new(Options { threads: 1, cache_bytes_max: 2 * size, ..Options::default() }).unwrap();
    let first = executor.load([1; 32], bytes("mlp")).unwrap();
    executor.load([2; 32], bytes("mlp")).unwrap();
    assert!(Arc::ptr_eq(&first, &executor.load([1; 32], Bytes::new()).unwrap()));
    executor.load([3; 32], bytes("mlp")).unwrap();
    assert!(executor.get(&[2; 32]).is_none(), "the least recently used went");
    assert!(executor.get(&[1; 32]).is_some());
    assert_eq!(executor.cached(), (2 * size, 2));
    let error = Executor::new(Options { threads: 1, cache_bytes_max: 10, ..Options::default() }).unwrap();
    assert!(matches!(error.load([1; 32], bytes("mlp")), Err(LoadError::LimitExceeded { .. })));
}

#[test]
fn timing() {
    let name = "mlp";
    let model = super::golden::model(name);
    let p = super::golden::Pack::read(name);
    let t = p.tensors(&p.header["inputs"]).remove(0).1;
    let batch = super::golden::batch_of(name);
    for rows in [1usize, 2, 4, 8, 16] {
        let x = match &t.data { crate::value::Data::Fp32(v) => v[..rows * 20].to_vec(), _ => unreachable!() };
        let x = crate::value::HostTensor::of_f32(&[rows, 20], x);
        for _ in 0..2 {
            let s = std::time::Instant::now();
            for _ in 0..2000 { std::hint::black_box(model.run_tensors(vec![x.clone()]).unwrap()); }
            eprint!("{rows}: tensors {:.2} us", s.elapsed().as_secs_f64() * 500.0);
            let b = batch.slice(0, rows);
            let s = std::time::Instant::now();
            for _ in 0..2000 { std::hint::black_box(model.run(&b).unwrap()); }
            eprintln!(" batch {:.2} us", s.elapsed().as_secs_f64() * 500.0);
        }
    }
}

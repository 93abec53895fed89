fn main() {
    let (t, rx) = tcptracer::bpf::Tracer::start(Default::default()).unwrap();
    for m in rx { println!("{m:?}"); }
    drop(t);
}

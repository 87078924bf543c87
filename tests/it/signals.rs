//! When Ctrl-C and SIGTERM are taken.

use std::io::{self, Write as _};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::Home;

/// Whether a process has a handler of its own for a signal.
fn takes(process: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.expect("a mask").trim(), 16).expect("a mask");
    caught & 1 << (signal.as_raw() - 1) != 0
}

#[test]
fn signals_are_taken_before_an_address_is_told() {
    let home = Home::new();
    let endless = ["run", "tiny.toml", "--max-train-steps=1000000", "--json"];
    for (args, code) in [(&["serve"][..], 0), (&endless, 143)] {
        // The pipe is full: whoever tells something first waits there until it is read.
        let (mut read, mut full) = io::pipe().expect("a pipe");
        let stdout = full.try_clone().expect("a pipe");
        let filling = thread::Builder::new()
            .name("filling".to_owned())
            .spawn(move || full.write_all(&vec![b'\n'; 1 << 20]))
            .expect("a thread");
        let mut host = home
            .command(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let both = [Signal::INT, Signal::TERM];
        let end = Instant::now() + Duration::from_secs(60);
        while !both.iter().all(|&signal| takes(host.id(), signal)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        kill_process(Pid::from_child(&host), Signal::TERM).expect("the process is there");
        io::copy(&mut read, &mut io::sink()).expect("read");
        filling.join().expect("a thread").expect("filled");
        let status = host.wait().expect("a child");
        assert_eq!(status.code(), Some(code), "{args:?}: {status}");
    }
}

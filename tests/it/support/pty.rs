use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// The time limit for every wait. A busy machine can be slow.
const LIMIT: Duration = Duration::from_secs(120);

/// A program in its own terminal, and the screen as a user sees it. The program is killed when this value is
/// dropped.
pub(crate) struct Pty {
    child: Child,
    ours: File,
    /// Kept open, so that the terminal outlives the program.
    theirs: File,
    before: Termios,
    screen: Arc<(Mutex<vt100::Parser>, Condvar)>,
}

impl Pty {
    /// Starts a program in a terminal of 24 rows and 80 columns.
    pub(crate) fn start(program: &Command) -> Self {
        let pty = Self::unread(program, Some("xterm-256color"));
        show(
            pty.ours.try_clone().expect("a terminal"),
            Arc::clone(&pty.screen),
        );
        pty
    }

    /// Starts a program in a terminal that has room for every line. `term` is the value of `TERM`. If `term`
    /// is `None`, `TERM` is not set.
    pub(crate) fn start_as(program: &Command, term: Option<&str>) -> Self {
        let mut pty = Self::unread(program, term);
        pty.resize(100, 200);
        show(
            pty.ours.try_clone().expect("a terminal"),
            Arc::clone(&pty.screen),
        );
        pty
    }

    /// Starts a program in a terminal whose buffer is full and is not read, as behind a frozen connection.
    pub(crate) fn start_stuck(program: &Command) -> Self {
        Self::make(program, Some("xterm-256color"), true)
    }

    fn unread(program: &Command, term: Option<&str>) -> Self {
        Self::make(program, term, false)
    }

    fn make(program: &Command, term: Option<&str>, is_full: bool) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).expect("a terminal");
        unlockpt(&ours).expect("a terminal");
        let name = ptsname(&ours, Vec::new()).expect("a terminal's name");
        let theirs = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name.to_str().expect("a path"))
            .expect("a terminal");
        let ours = File::from(ours);
        if is_full {
            ioctl_fionbio(&theirs, true).expect("set");
            while (&theirs).write(&[b'\n'; 256]).is_ok() {}
            ioctl_fionbio(&theirs, false).expect("set");
        }
        tcsetwinsize(&ours, size(24, 80)).expect("a size");
        let before = tcgetattr(&theirs).expect("modes");
        let end = || Stdio::from(theirs.try_clone().expect("a terminal"));
        // In a new session, the program's controlling terminal is this one and not that of the tests.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program());
        command.args(program.get_args()).env_clear();
        command.current_dir(program.get_current_dir().expect("a folder"));
        for (name, value) in program.get_envs() {
            command.env(name, value.expect("a value"));
        }
        if let Some(term) = term {
            command.env("TERM", term);
        }
        let child = command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid of util-linux");
        let screen = Arc::new((Mutex::new(parser(24, 80)), Condvar::new()));
        Self {
            child,
            ours,
            theirs,
            before,
            screen,
        }
    }

    /// Types keys.
    pub(crate) fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).expect("typed");
    }

    /// Changes the size of the terminal, as when a window is dragged.
    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        let mut parser = self.screen.0.lock().expect("not poisoned");
        parser.screen_mut().set_size(cells(rows), cells(columns));
        tcsetwinsize(&self.ours, size(rows, columns)).expect("a size");
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    /// Waits until the program has a thread with this name.
    #[track_caller]
    pub(crate) fn has_thread(&self, name: &str) {
        let tasks = format!("/proc/{}/task", self.child.id());
        let has = || {
            let tasks = std::fs::read_dir(&tasks).expect("a process");
            let mut names = tasks.map(|task| {
                let comm = task.expect("a thread").path().join("comm");
                std::fs::read_to_string(comm).unwrap_or_default()
            });
            names.any(|comm| comm.trim() == name)
        };
        let ends = Instant::now() + LIMIT;
        while !has() {
            assert!(Instant::now() < ends, "there is no thread {name}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the program has ended. Returns its exit code.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let ends = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(Instant::now() < ends, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the screen shows all of these texts. Returns the screen's text.
    #[track_caller]
    pub(crate) fn shows(&self, parts: &[&str]) -> String {
        self.becomes(&format!("{parts:?}"), |text| {
            parts.iter().all(|part| text.contains(part))
        })
    }

    /// Waits until the screen no longer shows this text. Returns the screen's text.
    #[track_caller]
    pub(crate) fn hides(&self, part: &str) -> String {
        self.becomes(&format!("no {part:?}"), |text| !text.contains(part))
    }

    #[track_caller]
    fn becomes(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let ends = Instant::now() + LIMIT;
        let mut parser = self.screen.0.lock().expect("not poisoned");
        loop {
            let text = parser.screen().contents();
            if is_so(&text) {
                return text;
            }
            let left = ends.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what} on:\n{text}");
            parser = self
                .screen
                .1
                .wait_timeout(parser, left)
                .expect("not poisoned")
                .0;
        }
    }

    /// Whether any cell of the screen has a color.
    pub(crate) fn has_colors(&self) -> bool {
        let parser = self.screen.0.lock().expect("not poisoned");
        let screen = parser.screen();
        let (rows, columns) = screen.size();
        let (rows, columns) = (rows.get(), columns.get());
        let mut cells = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        cells.any(|(row, column)| {
            screen.cell(row, column).is_some_and(|cell| {
                let colors = [cell.fgcolor(), cell.bgcolor()];
                colors.iter().any(|color| *color != vt100::Color::Default)
            })
        })
    }

    /// Waits until the program has ended. Asserts that it succeeded, that the terminal has its previous
    /// modes, and that it shows this text.
    #[track_caller]
    pub(crate) fn left_with(mut self, last_words: &str) {
        let ends = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(
                Instant::now() < ends,
                "it does not end:\n{}",
                self.shows(&[])
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = self.shows(&[last_words]);
        assert!(status.success(), "{status}:\n{text}");
        let (before, after) = (&self.before, tcgetattr(&self.theirs).expect("modes"));
        assert_eq!(before.local_modes, after.local_modes);
        assert_eq!(before.input_modes, after.input_modes);
        assert_eq!(before.output_modes, after.output_modes);
        let parser = self.screen.0.lock().expect("not poisoned");
        assert!(!parser.screen().alternate_screen(), "{text}");
        assert!(!parser.screen().hide_cursor(), "{text}");
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parser(rows: u16, columns: u16) -> vt100::Parser {
    vt100::Parser::new(cells(rows), cells(columns), 0)
}

fn cells(number: u16) -> NonZero<u16> {
    NonZero::new(number).expect("a size")
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Starts a thread that renders the program's output. The thread ends when no process has the program's end
/// of the terminal open any longer.
fn show(mut terminal: File, screen: Arc<(Mutex<vt100::Parser>, Condvar)>) {
    let show = move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            let mut parser = screen.0.lock().expect("not poisoned");
            parser.process(&bytes[..count]);
            screen.1.notify_all();
        }
    };
    std::thread::Builder::new()
        .name("terminal".to_owned())
        .spawn(show)
        .expect("a thread");
}

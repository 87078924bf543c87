//! Handles a plugin that crashes the host's process. A line on stderr names the plugin and the call, and then
//! the signal has its usual effect.
//!
//! The handlers are async-signal-safe: they read prepared data, write one line, and restore the previous or
//! the default action. They run on the alternate stack of the crashed thread, so they also work after a stack
//! overflow.

use std::ffi::{c_int, c_void};
use std::io::IsTerminal as _;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::under_way::{self, PluginName};

const SIGNALS: [(c_int, &str); 7] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGSYS, "SIGSYS"),
];

/// The previous action of each signal.
static BEFORE: [OnceLock<libc::sigaction>; SIGNALS.len()] =
    [const { OnceLock::new() }; SIGNALS.len()];
/// Set after a crash was reported, so that later crashes, which the first may have caused, are not reported.
static IS_TOLD: AtomicBool = AtomicBool::new(false);
static IS_TERMINAL: AtomicBool = AtomicBool::new(false);

/// The address range of a plugin's code.
struct Code {
    begin: AtomicUsize,
    end: AtomicUsize,
    plugin: AtomicPtr<PluginName>,
}

static CODE: [Code; 64] = [const {
    Code {
        begin: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        plugin: AtomicPtr::new(ptr::null_mut()),
    }
}; 64];
static CODES: AtomicUsize = AtomicUsize::new(0);

/// The number of words of a stack that are searched for addresses of a plugin's code.
const SEARCHED: usize = 2048;
/// A fault at an address this close to the stack pointer is a stack overflow.
const NEAR_STACK: usize = 64 << 10;

pub(super) fn guard() {
    IS_TERMINAL.store(std::io::stderr().is_terminal(), Ordering::Relaxed);
    for ((signal, _), before) in SIGNALS.iter().zip(&BEFORE) {
        // SAFETY: structs of integers are valid when zero; the handler is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = crashed as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(*signal, ptr::null(), &raw mut previous) == 0 {
                let _ = before.set(previous);
                libc::sigaction(*signal, &raw const action, ptr::null_mut());
            }
        }
    }
}

/// Records the address range of a loaded library's code, given one address in it.
pub(crate) fn remember(plugin: &'static PluginName, address: usize) {
    struct Search {
        address: usize,
        found: Option<(usize, usize)>,
    }
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        search: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes the description of a library, and the `Search` from the call below. The
        // library has as many headers as the description declares.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
        // SAFETY: as above.
        let headers =
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let of_code = headers
            .iter()
            .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0);
        for header in of_code {
            let begin = (info.dlpi_addr + header.p_vaddr) as usize;
            let end = begin + header.p_memsz as usize;
            if (begin..end).contains(&search.address) {
                search.found = Some((begin, end));
                return 1;
            }
        }
        0
    }
    let mut search = Search {
        address,
        found: None,
    };
    // SAFETY: the callback receives the search, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    let Some((begin, end)) = search.found else {
        return;
    };
    let number = CODES.fetch_add(1, Ordering::Relaxed);
    if let Some(code) = CODE.get(number) {
        code.plugin
            .store(ptr::from_ref(plugin).cast_mut(), Ordering::Relaxed);
        code.begin.store(begin, Ordering::Relaxed);
        code.end.store(end, Ordering::Release);
    }
}

/// Returns the plugin whose code contains this address.
fn plugin_at(address: usize) -> Option<&'static PluginName> {
    let code = CODE.iter().find(|code| {
        let end = code.end.load(Ordering::Acquire);
        (code.begin.load(Ordering::Relaxed)..end).contains(&address)
    })?;
    // SAFETY: `end` is stored last, so all fields of the entry are set. The name in it is never freed.
    unsafe { code.plugin.load(Ordering::Relaxed).as_ref() }
}

/// Searches the words of a stack, starting at the address `stack`, for an address in a plugin's code. Returns
/// the plugin of the first such address.
fn plugin_on(stack: usize) -> Option<&'static PluginName> {
    // A signal handler can have as little as 8 KiB of stack.
    let mut words = [0usize; 64];
    let length = size_of_val(&words);
    for part in 0..SEARCHED / words.len() {
        let local = libc::iovec {
            iov_base: words.as_mut_ptr().cast(),
            iov_len: length,
        };
        let remote = libc::iovec {
            iov_base: ptr::without_provenance_mut(stack.wrapping_add(part * length)),
            iov_len: length,
        };
        // The kernel copies a range completely or not at all, and cannot copy beyond the end of the stack.
        // SAFETY: the kernel writes into `words`, which is long enough, and reads only readable memory.
        let got = unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        if got <= 0 {
            break;
        }
        let found = words.iter().find_map(|&address| plugin_at(address));
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Returns the plugin whose code called this function on this thread, directly or indirectly. Used for
/// threads that are not in a call from the host.
pub(super) fn plugin_on_stack() -> Option<&'static PluginName> {
    let here = 0usize;
    plugin_on((&raw const here).addr() & !(size_of::<usize>() - 1))
}

/// Returns the previous action of a signal.
fn before_of(signal: c_int) -> Option<&'static libc::sigaction> {
    let mut all = SIGNALS.iter().zip(&BEFORE);
    all.find(|((known, _), _)| *known == signal)?.1.get()
}

extern "C" fn crashed(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid description of the signal, and the address of this thread's errno is
    // valid.
    let (code, address, errno) = unsafe {
        (
            (*info).si_code,
            (*info).si_addr().addr(),
            *libc::__errno_location(),
        )
    };
    let known = SIGNALS.iter().find(|(known, _)| *known == signal);
    let name = known.map_or("a signal", |(_, name)| *name);
    let before = before_of(signal);
    let is_sent = code <= 0;
    // After these signals, the thread executes the same instruction again. After other signals, it continues
    // with the next instruction.
    let faults_again = !is_sent
        && matches!(
            signal,
            libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL
        );
    let at = Registers::of(context);
    tell(name, (!is_sent).then_some(address), &at);
    // SAFETY: these functions are async-signal-safe.
    unsafe {
        match before {
            // The faulting instruction faults again, now under the previous handler.
            Some(before) if faults_again => {
                libc::sigaction(signal, before, ptr::null_mut());
                // That handler may abort. The alternate stack then has no room for this one.
                if let Some(abort) = before_of(libc::SIGABRT) {
                    libc::sigaction(libc::SIGABRT, abort, ptr::null_mut());
                }
            }
            // Any other signal is sent again, and ends the process when this handler returns.
            _ => {
                libc::signal(signal, libc::SIG_DFL);
                libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Reports the plugin that crashed, if a plugin did.
fn tell(signal: &str, address: Option<usize>, at: &Registers) {
    let call = under_way::on_this_thread().filter(|call| !call.is_remote);
    let culprit = match call {
        Some(call) => Some(call.plugin),
        None => plugin_at(at.instruction).or_else(|| plugin_on(at.stack)),
    };
    let Some(plugin) = culprit else { return };
    if IS_TOLD.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut line = Line::new();
    line.clear_terminal();
    line.add("error: plugin ");
    line.add(plugin);
    line.add(" crashed");
    match call {
        Some(call) => {
            line.add(" in ");
            line.add(call.name);
        }
        None => line.add(" in its own thread"),
    }
    line.add(": ");
    line.add(signal);
    match address {
        Some(address) if signal == "SIGSEGV" && address.abs_diff(at.stack) < NEAR_STACK => {
            line.add(", stack overflow");
        }
        Some(address) if matches!(signal, "SIGSEGV" | "SIGBUS") => {
            line.add(" at address 0x");
            line.add_hex(address);
        }
        _ => {}
    }
    line.add("\n");
    line.add_hint(culprit);
    line.write();
}

/// The registers of a thread when the signal arrived.
struct Registers {
    instruction: usize,
    stack: usize,
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    fn of(context: *mut c_void) -> Self {
        // SAFETY: the kernel passes a valid description of the thread.
        let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        Self {
            instruction: registers[libc::REG_RIP as usize] as usize,
            stack: registers[libc::REG_RSP as usize] as usize,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn of(context: *mut c_void) -> Self {
        // SAFETY: the kernel passes a valid description of the thread.
        let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext };
        Self {
            instruction: registers.pc as usize,
            stack: registers.sp as usize,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn of(_: *mut c_void) -> Self {
        Self {
            instruction: 0,
            stack: 0,
        }
    }
}

/// Text that is composed and written without allocating memory. Text beyond the capacity is truncated.
pub(super) struct Line {
    bytes: [u8; 640],
    length: usize,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; 640],
            length: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Returns the text from a position that [`Line::len`] has returned.
    pub(super) fn text(&self, from: usize) -> &str {
        std::str::from_utf8(&self.bytes[from..self.length]).unwrap_or_default()
    }

    pub(super) fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    pub(super) fn add_number(&mut self, number: u64) {
        if number >= 10 {
            self.add_number(number / 10);
        }
        let digit = b'0' + (number % 10) as u8;
        self.add(std::str::from_utf8(&[digit]).unwrap_or_default());
    }

    fn add_hex(&mut self, number: usize) {
        if number >= 16 {
            self.add_hex(number / 16);
        }
        let digit = b"0123456789abcdef"[number % 16];
        self.add(std::str::from_utf8(&[digit]).unwrap_or_default());
    }

    /// Erases an unfinished line on the terminal, such as a progress bar.
    pub(super) fn clear_terminal(&mut self) {
        if IS_TERMINAL.load(Ordering::Relaxed) {
            self.add("\r\x1b[2K");
        }
    }

    pub(super) fn add_hint(&mut self, plugin: Option<&'static PluginName>) {
        self.add(
            "hint: run `host resume` to continue from the last checkpoint; set mode=process to run ",
        );
        self.add(plugin.map_or("the plugin", |name| name));
        self.add(" in a separate process, so that it cannot end the host\n");
    }

    /// Writes the line to stderr.
    pub(super) fn write(&self) {
        // SAFETY: the bytes are readable; a failed write is ignored, since it cannot be reported.
        unsafe { libc::write(2, self.bytes.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_composed_and_cut_off() {
        let mut line = Line::new();
        line.add("a ");
        line.add_number(0);
        line.add(" ");
        line.add_number(4096);
        line.add(" ");
        line.add_hex(0x000d_ead0);
        assert_eq!(line.text(0), "a 0 4096 dead0");
        assert_eq!(line.text(2), "0 4096 dead0");
        line.add(&"x".repeat(2000));
        assert_eq!(line.len(), 640);
    }

    #[test]
    fn code_is_found_by_its_address() {
        let plugin = super::super::name_of("this-program");
        remember(plugin, code_is_found_by_its_address as *const () as usize);
        assert_eq!(plugin_at(tell as *const () as usize), Some(plugin));
        assert_eq!(plugin_at(8), None);
        assert_eq!(plugin_on_stack(), Some(plugin));
    }
}

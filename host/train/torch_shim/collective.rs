//! The Rust side of `collective.cpp` and `buckets.cpp`: stores, process groups and buckets of gradients.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::ptr;
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};
use tch::Tensor;
use torch_sys::C_tensor;

use super::{checked, pointers};

macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        struct $name {
            _private: [u8; 0],
        }
    )*};
}

opaque! { RawStore RawGroup RawWork RawBuckets }

unsafe extern "C" {
    safe fn shim_quiet_c10d();
    safe fn shim_close_on_exec();
    fn shim_store_open(
        host: *const c_char,
        port: u16,
        serve: bool,
        prefix: *const c_char,
        timeout_ms: i64,
        store: *mut *mut RawStore,
        bound: *mut u16,
    ) -> c_int;
    fn shim_store_set(store: *mut RawStore, key: *const c_char, data: *const u8, n: usize)
    -> c_int;
    fn shim_store_get(store: *mut RawStore, key: *const c_char, value: *mut *mut C_tensor)
    -> c_int;
    fn shim_store_set_first(
        store: *mut RawStore,
        key: *const c_char,
        data: *const u8,
        n: usize,
        value: *mut *mut C_tensor,
    ) -> c_int;
    fn shim_store_free(store: *mut RawStore);
    fn shim_group_open(
        store: *mut RawStore,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        interfaces: *const c_char,
        timeout_ms: i64,
        group: *mut *mut RawGroup,
    ) -> c_int;
    fn shim_group_open_nccl(
        store: *mut RawStore,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        device: c_int,
        library: *const c_char,
        group: *mut *mut RawGroup,
    ) -> c_int;
    fn shim_group_all_reduce(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        work: *mut *mut RawWork,
    ) -> c_int;
    fn shim_group_broadcast(
        group: *mut RawGroup,
        tensor: *const C_tensor,
        work: *mut *mut RawWork,
    ) -> c_int;
    fn shim_group_all_gather(
        group: *mut RawGroup,
        all: *const C_tensor,
        own: *const C_tensor,
        work: *mut *mut RawWork,
    ) -> c_int;
    fn shim_work_wait(work: *mut RawWork, timeout_ms: i64, done: *mut bool) -> c_int;
    fn shim_work_free(work: *mut RawWork);
    fn shim_group_free(group: *mut RawGroup);
    fn shim_buckets_new(
        group: *mut RawGroup,
        params: *const *const C_tensor,
        n: usize,
        capacity: i64,
        buckets: *mut *mut RawBuckets,
        count: *mut usize,
    ) -> c_int;
    fn shim_buckets_begin(buckets: *mut RawBuckets, last: bool) -> c_int;
    fn shim_buckets_finish(buckets: *mut RawBuckets, early: *mut usize) -> c_int;
    fn shim_buckets_wait(
        buckets: *mut RawBuckets,
        bucket: usize,
        timeout_ms: i64,
        done: *mut bool,
    ) -> c_int;
    fn shim_buckets_free(buckets: *mut RawBuckets);
}

/// Disables c10d's own messages on stderr.
pub(crate) fn quiet_c10d() {
    shim_quiet_c10d();
}

/// Marks every open file descriptor above 2 as close-on-exec.
pub(crate) fn close_on_exec() {
    shim_close_on_exec();
}

/// A client of c10d's `TCPStore`. Only one thread at a time can use it. A call blocks without a time limit if the
/// store's machine no longer answers.
#[derive(Debug)]
pub(crate) struct Store(*mut RawStore);

// SAFETY: the client has no thread affinity.
unsafe impl Send for Store {}

impl Store {
    /// Connects to the store at `host` and `port` within `patience`. With `serve`, first starts the store in this
    /// process; a `port` of 0 then selects a free port. Returns the client and the port. Keys get the prefix
    /// `prefix`.
    ///
    /// # Errors
    /// Returns an error if the port is in use, or the store does not answer.
    pub(crate) fn open(
        host: &str,
        port: u16,
        serve: bool,
        prefix: &str,
        patience: Duration,
    ) -> Result<(Self, u16)> {
        let (host, prefix) = (text(host)?, text(prefix)?);
        let (mut store, mut bound) = (ptr::null_mut(), 0);
        // SAFETY: the texts are null-terminated, and `store` and `bound` receive the results.
        checked(unsafe {
            shim_store_open(
                host.as_ptr(),
                port,
                serve,
                prefix.as_ptr(),
                millis(patience),
                &mut store,
                &mut bound,
            )
        })?;
        Ok((Self(store), bound))
    }

    /// Sets a key.
    ///
    /// # Errors
    /// Returns an error if the store is gone.
    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = text(key)?;
        // SAFETY: the store is open, and the pointers are valid for the call.
        checked(unsafe { shim_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Returns the value of a key, or `None` if it does not exist.
    ///
    /// # Errors
    /// Returns an error if the store is gone.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let key = text(key)?;
        let mut value = ptr::null_mut();
        // SAFETY: the store is open, and `value` receives a new tensor or null.
        checked(unsafe { shim_store_get(self.0, key.as_ptr(), &mut value) })?;
        (!value.is_null()).then(|| taken(value)).transpose()
    }

    /// Sets a key if it does not exist. Returns the key's value after the call.
    ///
    /// # Errors
    /// Returns an error if the store is gone.
    pub(crate) fn set_first(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        let key = text(key)?;
        let mut found = ptr::null_mut();
        // SAFETY: the store is open, the pointers are valid for the call, and `found` receives a new tensor.
        checked(unsafe {
            shim_store_set_first(
                self.0,
                key.as_ptr(),
                value.as_ptr(),
                value.len(),
                &mut found,
            )
        })?;
        taken(found)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the store is open and is not used again.
        unsafe { shim_store_free(self.0) }
    }
}

/// A process group. All ranks must start the same operations in the same order.
#[derive(Debug)]
pub(crate) struct Group(*mut RawGroup);

// SAFETY: c10d's process groups have no thread affinity.
unsafe impl Send for Group {}

impl Group {
    /// Creates a group of `size` ranks, which meet in the store, under the prefix `name`, within `patience`. This
    /// rank accepts connections at the numeric `address`, or at the network interfaces in `interfaces` (separated by commas) if it is not
    /// empty.
    ///
    /// # Errors
    /// Returns an error if the address or an interface cannot be used, or not all ranks can connect.
    pub(crate) fn open(
        (store, name): (&Store, &str),
        (rank, size): (usize, usize),
        address: &str,
        interfaces: &str,
        patience: Duration,
    ) -> Result<Self> {
        let (prefix, address, interfaces) = (text(name)?, text(address)?, text(interfaces)?);
        let mut group = ptr::null_mut();
        // SAFETY: the store is open, the texts are null-terminated, and `group` receives the result.
        checked(unsafe {
            shim_group_open(
                store.0,
                prefix.as_ptr(),
                number(rank),
                number(size),
                address.as_ptr(),
                interfaces.as_ptr(),
                millis(patience),
                &mut group,
            )
        })?;
        Ok(Self(group))
    }

    /// Connects this rank, which uses the CUDA device `device`, to the others with NCCL. `library` is the path of
    /// `libhost_nccl.so`. CUDA must be loaded.
    ///
    /// # Errors
    /// Returns an error if the library cannot be opened, or NCCL fails.
    pub(crate) fn open_nccl(
        (store, name): (&Store, &str),
        (rank, size): (usize, usize),
        device: usize,
        library: &Path,
    ) -> Result<Self> {
        let (prefix, library) = (text(name)?, text(&library.to_string_lossy())?);
        let mut group = ptr::null_mut();
        // SAFETY: the store is open, the texts are null-terminated, and `group` receives the result. The library was
        // built with the program, so its function has the expected signature.
        checked(unsafe {
            shim_group_open_nccl(
                store.0,
                prefix.as_ptr(),
                number(rank),
                number(size),
                number(device),
                library.as_ptr(),
                &mut group,
            )
        })?;
        Ok(Self(group))
    }

    /// Starts to replace a contiguous tensor with its sum over all ranks.
    ///
    /// # Errors
    /// Returns an error if an earlier operation failed.
    pub(crate) fn all_reduce(&self, tensor: &Tensor) -> Result<Work> {
        // SAFETY: group and tensor are live. `Work` keeps the tensor alive.
        Work::begin(|work| unsafe { shim_group_all_reduce(self.0, tensor.as_ptr(), work) })
    }

    /// Starts to replace a contiguous tensor with that of rank 0.
    ///
    /// # Errors
    /// Returns an error if an earlier operation failed.
    pub(crate) fn broadcast(&self, tensor: &Tensor) -> Result<Work> {
        // SAFETY: group and tensor are live. `Work` keeps the tensor alive.
        Work::begin(|work| unsafe { shim_group_broadcast(self.0, tensor.as_ptr(), work) })
    }

    /// Starts to copy the ranks' 1-d tensors `own`, which have the same length, to `all`, which has the length of
    /// all of them together.
    ///
    /// # Errors
    /// Returns an error if an earlier operation failed.
    pub(crate) fn all_gather(&self, all: &Tensor, own: &Tensor) -> Result<Work> {
        // SAFETY: group and tensors are live. `Work` keeps the tensors alive.
        Work::begin(|work| unsafe {
            shim_group_all_gather(self.0, all.as_ptr(), own.as_ptr(), work)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the group is open and is not used again.
        unsafe { shim_group_free(self.0) }
    }
}

/// An operation of a group that is in progress. It keeps its tensors alive.
#[derive(Debug)]
pub(crate) struct Work(*mut RawWork);

impl Work {
    fn begin(start: impl FnOnce(*mut *mut RawWork) -> c_int) -> Result<Self> {
        let mut work = ptr::null_mut();
        checked(start(&mut work))?;
        Ok(Self(work))
    }

    /// Waits at most `limit`. Returns whether the operation is complete.
    ///
    /// # Errors
    /// Returns an error if the operation failed.
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool> {
        let mut done = false;
        // SAFETY: the operation is live, and `done` receives the result.
        checked(unsafe { shim_work_wait(self.0, millis(limit), &mut done) })?;
        Ok(done)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: the operation is live and is not used again.
        unsafe { shim_work_free(self.0) }
    }
}

/// Flat tensors that contain the gradients of parameters and are summed over the ranks during the backward pass.
/// The sums are operations of the group, in an order that all ranks share.
#[derive(Debug)]
pub(crate) struct Buckets {
    raw: *mut RawBuckets,
    count: usize,
}

impl Buckets {
    /// Creates buckets of at most `capacity` bytes. `params` is in the order in which the gradients become
    /// complete in a backward pass. The group must outlive the buckets.
    ///
    /// # Errors
    /// Returns an error if libtorch cannot allocate the buckets.
    pub(crate) fn new(group: &Group, params: &[Tensor], capacity: i64) -> Result<Self> {
        let params = pointers(params);
        let (mut raw, mut count) = (ptr::null_mut(), 0);
        // SAFETY: group and parameters are live, and the buckets keep the group's backend alive.
        checked(unsafe {
            shim_buckets_new(
                group.0,
                params.as_ptr(),
                params.len(),
                capacity,
                &mut raw,
                &mut count,
            )
        })?;
        Ok(Self { raw, count })
    }

    /// Returns the number of buckets.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Prepares a backward pass. In the last pass of a step, the sums begin.
    ///
    /// # Errors
    /// Returns an error of libtorch.
    pub(crate) fn begin(&self, last: bool) -> Result<()> {
        // SAFETY: the buckets are live.
        checked(unsafe { shim_buckets_begin(self.raw, last) })
    }

    /// Ends a backward pass. In the last pass of a step, starts the remaining sums. Returns how many began during
    /// the pass.
    ///
    /// # Errors
    /// Returns an error if a parameter did not contribute to the loss.
    pub(crate) fn finish(&self) -> Result<usize> {
        let mut early = 0;
        // SAFETY: the buckets are live, and `early` receives the result.
        checked(unsafe { shim_buckets_finish(self.raw, &mut early) })?;
        Ok(early)
    }

    /// Waits at most `limit` for the sum of a bucket. Returns whether it is complete.
    ///
    /// # Errors
    /// Returns an error if the operation failed.
    pub(crate) fn wait(&self, bucket: usize, limit: Duration) -> Result<bool> {
        assert!(bucket < self.count);
        let mut done = false;
        // SAFETY: the buckets are live, the sum of this bucket was started, and `done` receives the result.
        checked(unsafe { shim_buckets_wait(self.raw, bucket, millis(limit), &mut done) })?;
        Ok(done)
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        // SAFETY: the buckets are live and are not used again.
        unsafe { shim_buckets_free(self.raw) }
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::new(
            ErrorKind::System,
            "a name contains a null character, which libtorch does not accept",
        )
    })
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn number(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

fn taken(tensor: *mut C_tensor) -> Result<Vec<u8>> {
    // SAFETY: the call that returned the tensor succeeded, so the tensor has no other owner.
    let tensor = unsafe { Tensor::from_ptr(tensor) };
    Vec::<u8>::try_from(&tensor)
        .map_err(|error| Error::new(ErrorKind::System, format!("libtorch failed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    use tch::{Device, Kind};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Runs `f` as each of two ranks of a group, each in a thread. Returns what it returns, by rank.
    fn as_two_ranks<T: Send>(f: impl Fn(&Group, usize) -> T + Sync) -> Vec<T> {
        quiet_c10d();
        let (_server, port) = Store::open("127.0.0.1", 0, true, "test", PATIENCE).expect("a store");
        thread::scope(|scope| {
            let start = |rank| {
                let f = &f;
                scope.spawn(move || {
                    let (store, _) =
                        Store::open("127.0.0.1", port, false, "test", PATIENCE).expect("connected");
                    let group =
                        Group::open((&store, "group"), (rank, 2), "127.0.0.1", "", PATIENCE);
                    f(&group.expect("a group"), rank)
                })
            };
            let ranks = [0, 1].map(start);
            ranks
                .map(|rank| rank.join().expect("no panic"))
                .into_iter()
                .collect()
        })
    }

    fn finish(work: &Work) {
        while !work.wait(PATIENCE).expect("it does not fail") {}
    }

    #[test]
    fn a_key_that_exists_is_not_set_again() {
        let (store, port) = Store::open("127.0.0.1", 0, true, "a", PATIENCE).expect("a store");
        assert_eq!(store.get("key").expect("answered"), None);
        assert_eq!(store.set_first("key", b"one").expect("set"), b"one");
        let (other, _) = Store::open("127.0.0.1", port, false, "a", PATIENCE).expect("connected");
        assert_eq!(other.set_first("key", b"two").expect("answered"), b"one");
        assert_eq!(
            other.get("key").expect("answered").as_deref(),
            Some(&b"one"[..])
        );
        let (third, _) = Store::open("127.0.0.1", port, false, "b", PATIENCE).expect("connected");
        assert_eq!(third.get("key").expect("answered"), None);
        other.set("empty", b"").expect("set");
        assert_eq!(
            store.get("empty").expect("answered").as_deref(),
            Some(&b""[..])
        );
    }

    #[test]
    fn tensors_are_summed_broadcast_and_gathered() {
        let results = as_two_ranks(|group, rank| {
            let options = (Kind::Double, Device::Cpu);
            let own = Tensor::from_slice(&[1.0 + rank as f64, 10.0]);
            finish(&group.all_reduce(&own).expect("started"));
            let first = Tensor::from_slice(&[rank as f64 + 5.0]);
            finish(&group.broadcast(&first).expect("started"));
            let all = Tensor::zeros([2], options);
            let part = Tensor::from_slice(&[rank as f64]);
            finish(&group.all_gather(&all, &part).expect("started"));
            Vec::<f64>::try_from(Tensor::cat(&[own, first, all], 0)).expect("numbers")
        });
        for result in results {
            assert_eq!(result, [3.0, 20.0, 5.0, 0.0, 1.0]);
        }
    }

    /// The sum of the first bucket begins before the backward pass has completed the last gradient. Two passes
    /// accumulate, and only the second sums.
    #[test]
    fn gradients_are_summed_during_the_last_backward_pass() {
        let results = as_two_ranks(|group, rank| {
            let options = (Kind::Double, Device::Cpu);
            let leaf = || Tensor::ones([3, 3], options).set_requires_grad(true);
            let (first, last) = (leaf(), leaf());
            let params = [last.shallow_clone(), first.shallow_clone()];
            let buckets = Buckets::new(group, &params, 72).expect("buckets");
            assert_eq!(buckets.count(), 2);
            let mut early = 0;
            for is_last in [false, true] {
                buckets.begin(is_last).expect("begun");
                let input = Tensor::full([1, 3], 1.0 + rank as f64, options);
                input
                    .matmul(&first)
                    .matmul(&last)
                    .sum(Kind::Double)
                    .backward();
                early = buckets.finish().expect("finished");
            }
            for bucket in 0..2 {
                while !buckets.wait(bucket, PATIENCE).expect("it does not fail") {}
            }
            let sums = [
                first.grad().sum(Kind::Double),
                last.grad().sum(Kind::Double),
            ];
            (early, sums.map(|sum| sum.double_value(&[])))
        });
        // Of one pass on rank 0: each gradient of `first` is 3, and each of `last` is 3.
        let expected = 2.0 * 27.0 * (1.0 + 2.0);
        for (early, sums) in results {
            assert_eq!(early, 2);
            assert_eq!(sums, [expected, expected]);
        }
    }

    /// This machine may have no GPU. The program must then say why NCCL cannot be used.
    #[test]
    fn a_library_that_cannot_be_opened_is_an_error() {
        let (store, _) = Store::open("127.0.0.1", 0, true, "test", PATIENCE).expect("a store");
        let missing = Path::new("/nowhere/libhost_nccl.so");
        let error = Group::open_nccl((&store, "group"), (0, 1), 0, missing).expect_err("missing");
        assert!(
            error.message().contains("/nowhere/libhost_nccl.so"),
            "{error}"
        );
    }

    /// `make test-peers` installs CUDA's libraries and headers, and builds `libhost_nccl.so`. Without a GPU, NCCL's
    /// process group reports it.
    #[cfg(feature = "peers")]
    #[test]
    fn nccl_is_called() {
        crate::torch_shim::load_cuda().expect("CUDA's libraries");
        let test = std::env::current_exe().expect("this test");
        let folder = test.ancestors().nth(2).expect("the profile's folder");
        let (store, _) = Store::open("127.0.0.1", 0, true, "test", PATIENCE).expect("a store");
        let library = folder.join("libhost_nccl.so");
        let group = Group::open_nccl((&store, "group"), (0, 1), 0, &library);
        if tch::Cuda::device_count() == 0 {
            let error = group.expect_err("no GPU");
            assert!(error.message().contains("no GPUs found"), "{error}");
            return;
        }
        let group = group.expect("a group");
        let tensor = Tensor::from_slice(&[1.5_f32]).to(Device::Cuda(0));
        finish(&group.all_reduce(&tensor).expect("started"));
        assert_eq!(tensor.double_value(&[0]), 1.5);
    }

    #[test]
    fn a_parameter_without_a_gradient_is_an_error() {
        let errors = as_two_ranks(|group, _| {
            let options = (Kind::Double, Device::Cpu);
            let param = Tensor::ones([2], options).set_requires_grad(true);
            let buckets = Buckets::new(group, &[param], 1 << 20).expect("buckets");
            buckets.begin(true).expect("begun");
            buckets
                .finish()
                .expect_err("no gradient")
                .message()
                .to_owned()
        });
        assert!(
            errors
                .iter()
                .all(|error| error.contains("did not contribute")),
            "{errors:?}"
        );
    }
}

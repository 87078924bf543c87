//! The processes ("ranks") that train together: how they meet, exchange data, and end together when one fails.
//!
//! Ranks meet in a store that the launcher or rank 0 serves. Then each has a thread that publishes what the rank is
//! doing and watches the others. Tensors travel through a process group of c10d, the C++ core of torch.distributed.
//! A rank never waits for others longer than they live: it waits in slices, and stops when its watch knows that a
//! rank has failed.

mod card;
mod launch;
mod lifeline;
mod meeting;
mod watch;

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::mem;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use host_core::{Control, Error, ErrorKind, Result};

use self::card::Card;
pub use self::card::Facts;
pub use self::launch::Launch;
use self::meeting::{Line, Meeting};
use self::watch::Watch;
pub(crate) use self::watch::{Measured, Phase};
use crate::torch_shim::{self, Group, Store, Work};
use tch::Device;

/// How long a rank waits before it asks its watch whether another rank has failed.
const SLICE: Duration = Duration::from_millis(200);
/// How long the ranks try to connect to each other after they have met.
const CONNECTION: Duration = Duration::from_secs(60);
/// How long an attempt to connect to the store takes, and the pause between two attempts.
const CONNECTION_ATTEMPT: Duration = Duration::from_secs(2);
const ATTEMPTS: Duration = Duration::from_millis(50);
/// How long a rank that serves the store waits after an error that all ranks find by themselves, so that they can
/// still read the store.
const LINGERING: Duration = Duration::from_millis(400);

/// Time limits of a training with several ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long ranks wait for each other at the start.
    pub start: Duration,
    /// A rank that gives no sign of life for this time is declared dead.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(600),
            silence: Duration::from_secs(30),
        }
    }
}

/// This process as one of the ranks of a training. Used on the main thread.
#[derive(Debug)]
pub struct Ranks {
    launch: Launch,
    /// The ranks' processes, by rank; empty if there is only one.
    cards: Vec<Card>,
    /// `None` if there is only one rank.
    peers: Option<Peers>,
}

/// The connections to the other ranks.
#[derive(Debug)]
struct Peers {
    /// Exchanges tensors in main memory. Always `Some`, until this value is dropped.
    group: Option<Group>,
    /// Exchanges tensors on CUDA devices, if the ranks train on them.
    cuda: OnceCell<Group>,
    watch: Watch,
    /// Keeps the store alive, if this process serves it. The group uses it, too.
    store: Option<Store>,
    is_broken: Cell<bool>,
    /// Number of values published through the store.
    published: Cell<u64>,
    /// What the rank is doing when it does not wait for others.
    phase: RefCell<Phase>,
    /// Total time that the rank has waited for others.
    waited: Cell<Duration>,
}

impl Ranks {
    /// Meets the other ranks and connects to them. `facts` must be the same on all ranks. `say` receives short
    /// messages while ranks are missing.
    ///
    /// # Errors
    /// Returns an error if ranks are missing, differ, or cannot connect. All ranks return the same error.
    pub fn meet(
        launch: Launch,
        facts: Result<Facts>,
        limits: Limits,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        if launch.size == 1 {
            facts?;
            return Ok(Self {
                launch,
                cards: Vec::new(),
                peers: None,
            });
        }
        torch_shim::quiet_c10d();
        let serves = launch.rank == 0 && !launch.has_store;
        let prefix = format!("host/{}", launch.job.as_deref().unwrap_or("-"));
        let store = open_store(&launch, serves, &prefix, limits.start)
            .inspect_err(|error| refuse(&launch, &prefix, error))?;
        let (line, port) = match launch.rank {
            0 => {
                let listener = lifeline::listen();
                let own = listener.as_ref().and_then(|own| own.local_addr().ok());
                (Line::Listen(listener), own.map_or(0, |own| own.port()))
            }
            _ => (Line::Connect(&launch.address), 0),
        };
        let card = Card::new(facts, (&launch.address, launch.port), port);
        let place = (launch.rank, launch.size);
        let Meeting {
            nonce,
            cards,
            lifelines,
        } = meeting::meet(&store, place, &card, line, limits.start, say)
            .map_err(|error| gone(&launch, error))?;
        card::compare(&cards).inspect_err(|_| linger(serves))?;
        let watching = open_store(&launch, false, &format!("{prefix}/{nonce}"), limits.start)?;
        let address = format!("{}:{}", launch.address, launch.port);
        let watch = Watch::start(
            watching,
            lifelines,
            address,
            launch.rank,
            cards.clone(),
            limits.silence,
        )?;
        // Until the others know of an error, the store must live.
        let tell = |error: &Error| watch.fail(error, serves);
        let own = own_address(&launch, &cards, &watch).inspect_err(tell)?;
        let (group, store) = connect((store, &nonce), place, own, &watch).inspect_err(tell)?;
        torch_shim::close_on_exec();
        let peers = Peers {
            group: Some(group),
            cuda: OnceCell::new(),
            watch,
            store: Some(store),
            is_broken: Cell::new(false),
            published: Cell::new(0),
            phase: RefCell::new(Phase::Unlimited("preparing".to_owned())),
            waited: Cell::new(Duration::ZERO),
        };
        Ok(Self {
            launch,
            cards,
            peers: Some(peers),
        })
    }

    /// Returns this process's number, from 0. Rank 0 is the lead.
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        self.launch.size
    }

    /// Returns this process's number among those of the same machine, and their number.
    pub fn local(&self) -> (usize, usize) {
        let Some(own) = self.cards.get(self.launch.rank) else {
            return (self.launch.local_rank.unwrap_or(0), 1);
        };
        let neighbors = self.cards.iter().filter(|card| card.is_neighbor(own));
        let lower = self.cards[..self.launch.rank].iter();
        let before = lower.filter(|card| card.is_neighbor(own)).count();
        (self.launch.local_rank.unwrap_or(before), neighbors.count())
    }

    /// Returns the number of machines.
    pub fn machines(&self) -> usize {
        let first = |rank: usize| {
            let earlier = &self.cards[..rank];
            !earlier
                .iter()
                .any(|card| card.is_neighbor(&self.cards[rank]))
        };
        (0..self.cards.len())
            .filter(|&rank| first(rank))
            .count()
            .max(1)
    }

    /// Returns a rank's name for messages.
    pub(crate) fn name(&self, rank: usize) -> String {
        match self.peers {
            Some(_) => card::name(&self.cards, rank),
            None => format!("rank {rank}"),
        }
    }

    /// Checks that all ranks have the same facts.
    ///
    /// # Errors
    /// Returns an error for the first difference. All ranks return the same error.
    pub(crate) fn compare(&self, facts: &Facts) -> Result<()> {
        let json = serde_json::to_vec(facts).unwrap_or_default();
        let all = self.gather(&json, "the comparison of the ranks")?;
        let all: Vec<Facts> = all
            .iter()
            .map(|json| serde_json::from_slice(json).unwrap_or_default())
            .collect();
        let facts: Vec<&Facts> = all.iter().collect();
        let hosts: Vec<&str> = self.cards.iter().map(|card| card.host.as_str()).collect();
        match hosts.is_empty() {
            true => Ok(()),
            false => card::compare_facts(&facts, &hosts),
        }
    }

    /// Records what this rank is doing, for the messages of the others.
    pub(crate) fn phase(&self, phase: Phase) {
        if let Some(peers) = &self.peers {
            peers.watch.phase(phase.clone());
            peers.phase.replace(phase);
        }
    }

    /// Tells the lead's watch how fast this rank is.
    pub(crate) fn measured(&self, measured: Measured) {
        if let Some(peers) = &self.peers {
            peers.watch.measured(measured);
        }
    }

    /// On the lead, returns the measurements of the other ranks.
    pub(crate) fn others(&self) -> Vec<(usize, Measured)> {
        let peers = self.peers.iter();
        peers.flat_map(|peers| peers.watch.others()).collect()
    }

    /// On the lead, `control` receives the stop requests of all ranks from now on. On the other ranks, the requests
    /// that `control` receives are passed to the lead.
    pub(crate) fn join_stops(&self, control: &Control) {
        if let Some(peers) = &self.peers {
            peers.watch.join_stops(control.clone());
        }
    }

    /// Returns the total time that this rank has waited for others.
    pub(crate) fn waited(&self) -> Duration {
        self.peers
            .as_ref()
            .map_or(Duration::ZERO, |peers| peers.waited.get())
    }

    /// Returns the group for tensors on `device`, or `None` if there is only one rank.
    pub(crate) fn group(&self, device: Device) -> Option<&Group> {
        let peers = self.peers.as_ref()?;
        match device.is_cuda() {
            true => peers.cuda.get(),
            false => peers.group.as_ref(),
        }
    }

    /// Connects the ranks' CUDA devices with NCCL. `device` is that of this rank, and CUDA must be loaded.
    ///
    /// # Errors
    /// Returns an error if NCCL is not available or fails.
    pub(crate) fn connect_cuda(&self, device: usize) -> Result<()> {
        let Some(Peers { cuda, store, .. }) = &self.peers else {
            return Ok(());
        };
        let Some(store) = store else {
            return Ok(());
        };
        // NCCL waits for a rank that dies now. The watch then ends this process.
        self.phase(Phase::Computing(
            "the connection of the CUDA devices".to_owned(),
        ));
        let place = (self.rank(), self.size());
        let library = std::env::current_exe().unwrap_or_default();
        let library = library.with_file_name("libhost_nccl.so");
        let group =
            Group::open_nccl((store, "nccl"), place, device, &library).map_err(|error| {
                let why = error.message();
                let message =
                    format!("the ranks' CUDA devices cannot be connected with NCCL: {why}");
                Error::new(ErrorKind::System, message).hint(NCCL)
            })?;
        let _ = cuda.set(group);
        self.phase(Phase::Unlimited("preparing".to_owned()));
        Ok(())
    }

    /// Waits until an operation of the group is complete.
    ///
    /// # Errors
    /// Returns an error if a rank fails. All ranks return the same error.
    pub(crate) fn complete(&self, work: Work, operation: &str) -> Result<()> {
        let done = self.wait(operation, |limit| work.wait(limit));
        if done.is_err() {
            // c10d would wait for the operation.
            mem::forget(work);
        }
        done
    }

    /// Calls `wait` until it returns true. It must wait at most the given time.
    ///
    /// # Errors
    /// Returns an error if a rank fails. All ranks return the same error.
    pub(crate) fn wait(
        &self,
        operation: &str,
        mut wait: impl FnMut(Duration) -> Result<bool>,
    ) -> Result<()> {
        let Some(peers) = &self.peers else {
            return Ok(());
        };
        let begin = Instant::now();
        peers.watch.phase(Phase::Waiting(operation.to_owned()));
        let broken = |error| {
            peers.is_broken.set(true);
            Err(error)
        };
        loop {
            match wait(SLICE) {
                Ok(true) => break,
                Ok(false) => {
                    if let Some(error) = peers.watch.verdict() {
                        return broken(error);
                    }
                }
                Err(_) => return broken(peers.watch.blame(operation)),
            }
        }
        peers.watch.phase(peers.phase.borrow().clone());
        peers.waited.set(peers.waited.get() + begin.elapsed());
        Ok(())
    }

    /// Returns the bytes of all ranks, by rank.
    ///
    /// # Errors
    /// Returns an error if a rank fails.
    pub(crate) fn gather(&self, own: &[u8], operation: &str) -> Result<Vec<Vec<u8>>> {
        let Some(group) = self.group(Device::Cpu) else {
            return Ok(vec![own.to_vec()]);
        };
        let gathered = |own: &tch::Tensor, all: &tch::Tensor| {
            let work = self.begun(group.all_gather(all, own), operation)?;
            self.complete(work, operation)
        };
        let options = (tch::Kind::Int64, Device::Cpu);
        let length = tch::Tensor::from_slice(&[own.len() as i64]);
        let lengths = tch::Tensor::zeros([self.size() as i64], options);
        gathered(&length, &lengths)?;
        let lengths = Vec::<i64>::try_from(&lengths).map_err(unreadable)?;
        let longest = lengths.iter().copied().max().unwrap_or(0).unsigned_abs() as usize;
        if longest == 0 {
            return Ok(vec![Vec::new(); self.size()]);
        }
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let own = tch::Tensor::from_slice(&padded);
        let all = tch::Tensor::zeros(
            [(self.size() * longest) as i64],
            (tch::Kind::Uint8, Device::Cpu),
        );
        gathered(&own, &all)?;
        let all = Vec::<u8>::try_from(&all).map_err(unreadable)?;
        let rows = all.chunks(longest).zip(lengths);
        Ok(rows
            .map(|(row, length)| row[..length.unsigned_abs() as usize].to_vec())
            .collect())
    }

    /// Returns whether a rank has failed.
    pub(crate) fn is_broken(&self) -> bool {
        self.peers
            .as_ref()
            .is_some_and(|peers| peers.is_broken.get())
    }

    /// Finds out why an operation could not begin.
    pub(crate) fn begun(&self, work: Result<Work>, operation: &str) -> Result<Work> {
        work.map_err(|error| match &self.peers {
            Some(peers) => {
                peers.is_broken.set(true);
                peers.watch.blame(operation)
            }
            None => error,
        })
    }

    /// Sends bytes from the lead to the other ranks through the store. The other ranks wait for them as long as the
    /// lead lives. The lead does not wait. Use this after work that only the lead does and that can take long.
    ///
    /// # Errors
    /// Returns an error if a rank fails.
    pub(crate) fn hand_out(&self, own: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let Some(peers) = &self.peers else {
            return Ok(own.unwrap_or_default());
        };
        let key = format!("handed/{}", peers.published.get());
        peers.published.set(peers.published.get() + 1);
        match own {
            Some(value) => {
                if let Some(error) = peers.watch.verdict() {
                    return Err(error);
                }
                peers.watch.publish(key, value.clone());
                Ok(value)
            }
            None => peers.watch.wanted(key),
        }
    }

    /// Ends the exchange between the ranks. All ranks call this after their last exchange. From then on, the end of
    /// another rank is not an error.
    pub(crate) fn leave(&self) {
        if let Some(peers) = &self.peers {
            peers.watch.leave();
        }
    }

    /// Tells the other ranks that this one ends with `error`, so that all end with the same error. Returns the error
    /// with which this rank ends. After this call, the ranks exchange nothing more.
    pub fn fail(&self, error: Error) -> Error {
        if let Some(peers) = &self.peers {
            peers.is_broken.set(true);
            peers
                .watch
                .fail(&error, self.launch.rank == 0 && !self.launch.has_store);
        }
        error
    }
}

/// The store of a launcher, on the loopback interface.
#[derive(Debug)]
pub struct StoreServer {
    port: u16,
    _store: Store,
}

impl StoreServer {
    /// Starts a store on a free port. It ends when this value is dropped.
    ///
    /// # Errors
    /// Returns an error if the store cannot be started.
    pub fn start() -> Result<Self> {
        torch_shim::quiet_c10d();
        let (store, port) = Store::open("127.0.0.1", 0, true, "host", CONNECTION)?;
        Ok(Self {
            port,
            _store: store,
        })
    }

    /// Returns the store's port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        if self.is_broken.get() {
            // c10d would wait for the operations in progress.
            mem::forget(self.group.take());
            mem::forget(self.cuda.take());
            mem::forget(self.store.take());
        }
    }
}

/// Opens the store at which the ranks meet.
fn open_store(launch: &Launch, serves: bool, prefix: &str, patience: Duration) -> Result<Store> {
    let Launch { address, port, .. } = launch;
    let reached = match serves {
        true => Ok(()),
        false => wait_for_listener((address, *port), patience),
    };
    let opened = reached.and_then(|()| answered((address, *port), serves, prefix, patience));
    opened.map_err(|error| {
        let is_taken = error.message().contains("EADDRINUSE");
        let (why, hint) = match is_taken {
            true => (
                "the port is in use".to_owned(),
                "choose a free MASTER_PORT, the same for all ranks",
            ),
            false => (
                format!("it does not answer ({})", error.message()),
                "check that rank 0 runs on MASTER_ADDR, and that no firewall blocks MASTER_PORT",
            ),
        };
        let message = format!("the ranks cannot meet in the store at {address}:{port}: {why}");
        Error::new(ErrorKind::Config, message).hint(hint)
    })
}

/// Opens the store. Returns an error if it does not answer within the time for a connection.
///
/// c10d would wait forever for another program that accepts connections at the port.
fn answered(
    (address, port): (&str, u16),
    serves: bool,
    prefix: &str,
    patience: Duration,
) -> Result<Store> {
    let (host, prefix) = (address.to_owned(), prefix.to_owned());
    let (sender, opened) = sync_channel(1);
    thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || sender.send(Store::open(&host, port, serves, &prefix, patience)))
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?;
    let limit = patience.min(CONNECTION);
    let silence = format!("no reply of a store within {} s", limit.as_secs());
    match opened.recv_timeout(limit) {
        Ok(opened) => opened.map(|(store, _)| store),
        Err(_) => Err(Error::new(ErrorKind::System, silence)),
    }
}

/// Waits until a process accepts connections at an address. c10d's own attempts have pauses of up to seconds.
fn wait_for_listener(address: (&str, u16), patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let attempt = || {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for one in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&one, CONNECTION_ATTEMPT) {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(Error::new(ErrorKind::System, error.to_string()));
            }
            Err(_) => thread::sleep(ATTEMPTS),
        }
    }
}

/// Explains an error of the store during the meeting. The process that serves the store has ended.
fn gone(Launch { address, port, .. }: &Launch, error: Error) -> Error {
    if error.kind() != ErrorKind::System {
        return error;
    }
    let why = error.message();
    let message = format!("the store at {address}:{port} is gone, and with it rank 0: {why}");
    Error::new(ErrorKind::System, message).hint(
        "`host run --resume auto` starts or resumes the run when the launcher restarts the ranks",
    )
}

/// Makes the other ranks end with `error`, if rank 0 cannot serve the store because another job's store has the port.
/// The other ranks have joined that store.
fn refuse(launch: &Launch, prefix: &str, error: &Error) {
    let patience = Duration::from_secs(2);
    let place = (&*launch.address, launch.port);
    if launch.rank == 0
        && let Ok(store) = answered(place, false, prefix, patience)
    {
        let card = Card::new(Ok(Facts::new()), (&launch.address, launch.port), 0);
        meeting::refuse(&store, launch.size, &card, error);
    }
}

/// Where a rank accepts connections.
struct OwnAddress {
    address: String,
    /// The value of `GLOO_SOCKET_IFNAME`, which overrides the address if it is not empty.
    interfaces: String,
}

/// Returns where this rank accepts connections, after all ranks have found this out.
fn own_address(launch: &Launch, cards: &[Card], watch: &Watch) -> Result<OwnAddress> {
    let interfaces = std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default();
    let missing = |name: &&str| !Path::new("/sys/class/net").join(name).exists();
    if let Some(name) = interfaces.split(',').find(missing) {
        let message =
            format!("GLOO_SOCKET_IFNAME names a network interface that does not exist: {name}");
        return Err(
            Error::new(ErrorKind::Config, message).hint("list the interfaces with `ip link`")
        );
    }
    let address = address(launch.rank, cards, !interfaces.is_empty())?;
    // A rank without an address fails before any rank starts to connect.
    watch.publish(
        format!("address/{}", launch.rank),
        address.clone().into_bytes(),
    );
    for rank in 0..launch.size {
        watch.wanted(format!("address/{rank}"))?;
    }
    Ok(OwnAddress {
        address,
        interfaces,
    })
}

/// Connects all ranks with each other.
fn connect(
    (store, nonce): (Store, &str),
    place: (usize, usize),
    own: OwnAddress,
    watch: &Watch,
) -> Result<(Group, Store)> {
    let (sender, connected) = sync_channel(1);
    let nonce = nonce.to_owned();
    // Gloo waits for a rank that dies now, so this thread cannot wait for Gloo.
    thread::Builder::new()
        .name("connect".to_owned())
        .spawn(move || {
            let group = Group::open(
                (&store, &nonce),
                place,
                &own.address,
                &own.interfaces,
                CONNECTION,
            );
            // This fails if the connection is no longer wanted. c10d would wait, so nothing is dropped.
            if let Err(unwanted) = sender.send((group, store)) {
                mem::forget(unwanted.0);
            }
        })
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread: {e}")))?;
    loop {
        match connected.recv_timeout(SLICE) {
            Ok((Ok(group), store)) => return Ok((group, store)),
            Ok((Err(error), store)) => {
                mem::forget(store);
                let why = error.message();
                let message = format!("the ranks cannot connect to each other: {why}");
                return Err(Error::new(ErrorKind::System, message).hint(INTERFACE));
            }
            Err(_) => {
                if let Some(error) = watch.verdict() {
                    return Err(error);
                }
            }
        }
    }
}

const NCCL: &str = "NCCL_DEBUG=INFO prints details; if the library is missing, run `host/train/provision.sh --cuda` and `make build`, or train with --device cpu";

const INTERFACE: &str =
    "set GLOO_SOCKET_IFNAME to the network interface that connects the machines, such as eth0";

/// Returns the address at which the other ranks reach this one.
///
/// # Errors
/// Returns an error if the ranks run on several machines, but this machine knows only its loopback address.
fn address(rank: usize, cards: &[Card], is_interface_given: bool) -> Result<String> {
    let own = &cards[rank];
    if cards.iter().all(|card| card.is_neighbor(own)) {
        return Ok("127.0.0.1".to_owned());
    }
    let is_usable = |address: &str| {
        address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| !address.is_loopback())
    };
    if is_usable(&own.address) || is_interface_given {
        return Ok(own.address.clone());
    }
    // The store is on this machine, so the route to it says nothing. The route to another machine does.
    let others = cards
        .iter()
        .filter(|card| !card.is_neighbor(own) && is_usable(&card.address));
    let mut routes = others.filter_map(|card| card::route_to(&card.address, 1));
    match routes.find(|address| is_usable(&address.to_string())) {
        Some(address) => Ok(address.to_string()),
        None => {
            let message = format!(
                "{} has no address at which other machines reach it: MASTER_ADDR resolves to {} there",
                card::name(cards, rank),
                if own.address.is_empty() {
                    "nothing"
                } else {
                    &own.address
                }
            );
            Err(Error::new(ErrorKind::Config, message).hint(INTERFACE))
        }
    }
}

fn linger(serves: bool) {
    if serves {
        thread::sleep(LINGERING);
    }
}

fn unreadable(error: tch::TchError) -> Error {
    Error::new(ErrorKind::System, format!("libtorch failed: {error}"))
}

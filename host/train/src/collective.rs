use std::rc::Rc;
use std::time::Duration;

use host_core::{Control, Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};

use crate::model::Param;
use crate::ranks::{Facts, Measured, Phase, Ranks};
use crate::torch_shim::{self, Buckets};

/// The processes that train together. Each must call the same functions in the same order.
#[derive(Clone, Debug)]
pub struct Collective {
    /// `None` for a process that was started alone.
    ranks: Option<Rc<Ranks>>,
    /// Whether each micro-batch seeds its dropout.
    seeds_dropout: bool,
}

/// A process's part of the work: every `of`-th piece, starting with piece `rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) rank: usize,
    pub(crate) of: usize,
}

impl Share {
    /// All of the work.
    pub(crate) const WHOLE: Self = Self { rank: 0, of: 1 };

    /// Returns the size of all shares together, if each is as large as this one.
    pub(crate) fn of_all(self, own: i64) -> i64 {
        own * self.of as i64
    }

    /// Returns whether a piece, counted from 0, belongs to the share.
    pub(crate) fn has(self, piece: usize) -> bool {
        piece % self.of == self.rank
    }
}

/// Bytes of the first message of [`Collective::agree`]. Longer values need a second message.
const FIRST_MESSAGE: usize = 256;

/// Maximum MiB of a bucket of gradients on the CPU and on CUDA. On CUDA, a sum has a higher fixed cost.
const BUCKET_CAP_MB: (u32, u32) = (4, 25);

impl Collective {
    /// Returns the collective of a single process.
    pub const fn alone() -> Self {
        Self {
            ranks: None,
            seeds_dropout: false,
        }
    }

    /// Returns the collective of ranks that have met.
    pub fn of(ranks: Rc<Ranks>) -> Self {
        Self {
            ranks: Some(ranks),
            seeds_dropout: true,
        }
    }

    /// Returns the same processes, with the dropout of a training that began on several ranks.
    pub(crate) fn seeding_dropout(mut self) -> Self {
        self.seeds_dropout = true;
        self
    }

    /// Returns whether the training's dropout does not depend on the number of ranks.
    pub(crate) fn seeds_dropout(&self) -> bool {
        self.seeds_dropout
    }

    /// Returns this process's share of every batch and of the evaluation.
    pub(crate) fn share(&self) -> Share {
        match &self.ranks {
            Some(ranks) => Share {
                rank: ranks.rank(),
                of: ranks.size(),
            },
            None => Share::WHOLE,
        }
    }

    /// Returns whether this process makes the decisions between steps and writes the checkpoints.
    pub(crate) fn is_lead(&self) -> bool {
        self.share().rank == 0
    }

    /// Lets the processes exchange tensors on `device`, which differs between the processes of a machine.
    ///
    /// # Errors
    /// Returns an error if NCCL is not available or fails.
    pub(crate) fn connect(&self, device: Device) -> Result<()> {
        match (device, self.peers()) {
            (Device::Cuda(index), Some(ranks)) => ranks.connect_cuda(index),
            _ => Ok(()),
        }
    }

    /// Returns this process's number among those of the same machine, and their number.
    pub(crate) fn local(&self) -> (usize, usize) {
        self.ranks.as_ref().map_or((0, 1), |ranks| ranks.local())
    }

    /// Returns the number of processes.
    pub fn size(&self) -> usize {
        self.share().of
    }

    /// Returns a rank's name for messages.
    pub(crate) fn name(&self, rank: usize) -> String {
        match &self.ranks {
            Some(ranks) => ranks.name(rank),
            None => format!("rank {rank}"),
        }
    }

    /// Checks that all ranks have the same facts.
    ///
    /// # Errors
    /// Returns an error for the first difference. All ranks return the same error.
    pub fn compare(&self, facts: &Facts) -> Result<()> {
        self.ranks
            .as_ref()
            .map_or(Ok(()), |ranks| ranks.compare(facts))
    }

    /// Records that this rank is doing something that may take any time.
    pub(crate) fn unlimited(&self, what: &str) {
        self.phase(|| Phase::Unlimited(what.to_owned()));
    }

    /// Records what this rank is computing, as all others do at the same time.
    pub(crate) fn computing(&self, what: impl FnOnce() -> String) {
        self.phase(|| Phase::Computing(what()));
    }

    fn phase(&self, phase: impl FnOnce() -> Phase) {
        if let Some(ranks) = self.peers() {
            ranks.phase(phase());
        }
    }

    /// Tells the lead how fast this rank is.
    pub(crate) fn measured(&self, measured: Measured) {
        if let Some(ranks) = self.peers() {
            ranks.measured(measured);
        }
    }

    /// On the lead, returns the last measurements of the other ranks, by rank.
    pub(crate) fn others(&self) -> Vec<(usize, Measured)> {
        self.peers().map_or_else(Vec::new, Ranks::others)
    }

    /// Returns the total time that this rank has waited for others.
    pub(crate) fn waited(&self) -> Duration {
        self.peers().map_or(Duration::ZERO, Ranks::waited)
    }

    /// Makes the lead stop if any rank's `control` is asked to.
    pub(crate) fn join_stops(&self, control: &Control) {
        if let Some(ranks) = self.peers() {
            ranks.join_stops(control);
        }
    }

    /// Returns the sum of a tensor over all processes.
    ///
    /// # Errors
    /// Returns an error if another rank fails; so do the functions below.
    pub(crate) fn sum(&self, tensor: Tensor, what: &str) -> Result<Tensor> {
        if let Some((ranks, group)) = self.group(tensor.device()) {
            let work = ranks.begun(group.all_reduce(&tensor), what)?;
            ranks.complete(work, what)?;
        }
        Ok(tensor)
    }

    /// Replaces the tensors with those of the lead.
    pub(crate) fn broadcast<'a>(
        &self,
        tensors: impl IntoIterator<Item = &'a Tensor>,
        what: &str,
    ) -> Result<()> {
        for tensor in tensors {
            let Some((ranks, group)) = self.group(tensor.device()) else {
                return Ok(());
            };
            let tensor = tensor.detach();
            let work = ranks.begun(group.broadcast(&tensor), what)?;
            ranks.complete(work, what)?;
        }
        Ok(())
    }

    /// Returns buckets of at most `cap_mb` MiB that sum the gradients of `params` over all processes.
    pub(crate) fn gradients(
        &self,
        params: &[Param],
        cap_mb: Option<u32>,
        device: Device,
    ) -> Result<Gradients> {
        let Some((ranks, group)) = self.group(device) else {
            return Ok(Gradients { summed: None });
        };
        // The backward pass completes the gradients in this order, approximately.
        let params: Vec<Tensor> = params
            .iter()
            .rev()
            .map(|p| p.tensor.shallow_clone())
            .collect();
        let (cpu, cuda) = BUCKET_CAP_MB;
        let usual = if device.is_cuda() { cuda } else { cpu };
        let capacity = i64::from(cap_mb.unwrap_or(usual)) << 20;
        let buckets = Buckets::new(group, &params, capacity)?;
        Ok(Gradients {
            summed: Some(Summed {
                ranks: Rc::clone(ranks),
                buckets: Some(buckets),
            }),
        })
    }

    /// Returns the values of all processes, sorted by rank.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(
        &self,
        own: T,
        what: &str,
    ) -> Result<Vec<T>> {
        let Some(ranks) = self.peers() else {
            return Ok(vec![own]);
        };
        let all = ranks.gather(&json(&own), what)?;
        all.iter().map(|json| read(json)).collect()
    }

    /// Returns the decision of the lead process.
    pub(crate) fn agree<T: Serialize + DeserializeOwned>(&self, own: T, what: &str) -> Result<T> {
        let Some((ranks, group)) = self.group(Device::Cpu) else {
            return Ok(own);
        };
        let json = if self.is_lead() {
            json(&own)
        } else {
            Vec::new()
        };
        let head = json.len().min(FIRST_MESSAGE - 4);
        let mut first = Vec::with_capacity(FIRST_MESSAGE);
        first.extend_from_slice(&(json.len() as u32).to_le_bytes());
        first.extend_from_slice(&json[..head]);
        first.resize(FIRST_MESSAGE, 0);
        let sent = |bytes: &[u8]| -> Result<Vec<u8>> {
            let tensor = Tensor::from_slice(bytes);
            let work = ranks.begun(group.broadcast(&tensor), what)?;
            ranks.complete(work, what)?;
            Vec::<u8>::try_from(&tensor).map_err(|_| unreadable())
        };
        let first = sent(&first)?;
        let (length, head) = first.split_first_chunk::<4>().ok_or_else(unreadable)?;
        let length = u32::from_le_bytes(*length) as usize;
        let mut message = head[..length.min(head.len())].to_vec();
        if length > head.len() {
            let rest = if self.is_lead() {
                json[head.len()..].to_vec()
            } else {
                vec![0; length - head.len()]
            };
            message.extend(sent(&rest)?);
        }
        read(&message)
    }

    /// Returns what the lead has worked out, which may take it any time. The other processes pass `None`.
    ///
    /// # Panics
    /// Panics if the lead passes `None`.
    pub fn hand_out<T: Serialize + DeserializeOwned>(&self, own: Option<T>) -> Result<T> {
        let sent = match self.peers() {
            Some(ranks) => ranks.hand_out(own.as_ref().map(json))?,
            None => Vec::new(),
        };
        match own {
            Some(own) => Ok(own),
            None if self.is_lead() => unreachable!("the lead has the value"),
            None => read(&sent),
        }
    }

    /// Ends the exchange between the processes. Each calls this after its last exchange.
    pub fn leave(&self) {
        if let Some(ranks) = self.peers() {
            ranks.leave();
        }
    }

    /// Seeds the dropout of this process's micro-batch with this number in the step, so that its masks depend on
    /// neither the number of ranks nor the history. A training in a process that was started alone uses one sequence
    /// of random numbers instead.
    pub(crate) fn seed_dropout(&self, seed: i64, step: u64, micro_batch: usize) {
        if self.seeds_dropout {
            let Share { rank, of } = self.share();
            tch::manual_seed(mixed(seed, step, (micro_batch * of + rank) as u64));
        }
    }

    fn peers(&self) -> Option<&Ranks> {
        self.ranks.as_deref().filter(|ranks| ranks.size() > 1)
    }

    fn group(&self, device: Device) -> Option<(&Rc<Ranks>, &torch_shim::Group)> {
        let ranks = self.ranks.as_ref()?;
        Some((ranks, ranks.group(device)?))
    }
}

/// The sums of the gradients over all ranks. With a single process, does nothing.
#[derive(Debug)]
pub(crate) struct Gradients {
    summed: Option<Summed>,
}

#[derive(Debug)]
struct Summed {
    ranks: Rc<Ranks>,
    /// Always `Some`, until this value is dropped.
    buckets: Option<Buckets>,
}

impl Gradients {
    /// Call before each backward pass of a step. The sums begin in the `last` one.
    pub(crate) fn begin(&self, last: bool) -> Result<()> {
        match self.buckets() {
            Some((_, buckets)) => buckets.begin(last),
            None => Ok(()),
        }
    }

    /// Call after each backward pass of a step.
    pub(crate) fn end(&self) -> Result<()> {
        match self.buckets() {
            Some((_, buckets)) => buckets.finish().map(drop),
            None => Ok(()),
        }
    }

    /// Waits until the gradients of all ranks are summed.
    pub(crate) fn wait(&self) -> Result<()> {
        let Some((ranks, buckets)) = self.buckets() else {
            return Ok(());
        };
        for bucket in 0..buckets.count() {
            ranks.wait("the sum of the gradients", |limit| {
                buckets.wait(bucket, limit)
            })?;
        }
        Ok(())
    }

    fn buckets(&self) -> Option<(&Rc<Ranks>, &Buckets)> {
        let summed = self.summed.as_ref()?;
        Some((&summed.ranks, summed.buckets.as_ref()?))
    }
}

impl Drop for Summed {
    fn drop(&mut self) {
        if self.ranks.is_broken() {
            // c10d would wait for the sums in progress.
            std::mem::forget(self.buckets.take());
        }
    }
}

/// Mixes three numbers to a seed, with the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(seed: i64, step: u64, number: u64) -> i64 {
    let mut state = 0_u64;
    for part in [seed.cast_unsigned(), step, number] {
        state = state.wrapping_add(part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state.cast_signed()
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|_| unreadable())
}

fn unreadable() -> Error {
    Error::new(
        ErrorKind::System,
        "a message of another rank cannot be read",
    )
    .hint("start all ranks with the same version of the program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_dropout_differ_by_seed_step_and_micro_batch() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..4 {
            for step in 0..32 {
                for number in 0..32 {
                    assert!(seen.insert(mixed(seed, step, number)));
                }
            }
        }
    }

    #[test]
    fn a_single_process_decides_and_sums_alone() {
        let alone = Collective::alone();
        assert!(alone.is_lead() && alone.share() == Share::WHOLE);
        assert_eq!(alone.agree(7, "").expect("agreed"), 7);
        assert_eq!(alone.gather(7, "").expect("gathered"), [7]);
        let sum = alone.sum(Tensor::from(2.5), "").expect("summed");
        assert_eq!(sum.double_value(&[]), 2.5);
        let gradients = alone
            .gradients(&[], None, Device::Cpu)
            .expect("nothing to sum");
        assert!(gradients.begin(true).is_ok() && gradients.wait().is_ok());
    }
}

//! How a launcher tells a process which rank it is: torchrun, Slurm's `srun`, or plain environment variables.

use std::str::FromStr;

use host_core::{Error, ErrorKind, Result};

/// This process's place among the ranks, and the address of the store at which they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The process's number, from 0. Rank 0 is the lead.
    pub rank: usize,
    /// Number of ranks.
    pub size: usize,
    /// The process's number among those of the same machine. `None`: it follows from the meeting.
    pub local_rank: Option<usize>,
    /// Host name or address of the store.
    pub address: String,
    /// Port of the store.
    pub port: u16,
    /// Whether the launcher serves the store. Otherwise rank 0 does.
    pub has_store: bool,
    /// A name of the job that stays the same when the launcher restarts it.
    pub job: Option<String>,
}

/// The first port for Slurm jobs, and the number of ports. The job's number selects one of them.
const SLURM_PORTS: (u64, u64) = (20_000, 20_000);

impl Launch {
    /// Reads the variables of the process's environment. Returns `None` if it was started as a single process.
    ///
    /// # Errors
    /// Returns an error if variables are missing or contradict each other.
    pub fn from_env() -> Result<Option<Self>> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(var: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let launch = if var("RANK").is_some() || var("WORLD_SIZE").is_some() {
            Self::plain(var)?
        } else if var("SLURM_STEP_ID").is_some() {
            match Self::slurm(var)? {
                Some(launch) => launch,
                None => return Ok(None),
            }
        } else {
            return Ok(None);
        };
        if launch.rank >= launch.size {
            return Err(wrong(format!(
                "the rank is {}, but there are {} ranks, numbered from 0",
                launch.rank, launch.size
            )));
        }
        Ok(Some(launch))
    }

    /// Reads the variables of torchrun, of Kubernetes' PyTorchJob, or set by hand.
    fn plain(var: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let size = required(var, "WORLD_SIZE", "RANK")?;
        let rank = required(var, "RANK", "WORLD_SIZE")?;
        if size == 0 {
            return Err(wrong("WORLD_SIZE is 0, but must be at least 1".to_owned()));
        }
        let is_alone = size == 1;
        let address = match var("MASTER_ADDR") {
            Some(address) => address,
            None if is_alone => String::new(),
            None => return Err(missing("MASTER_ADDR", "WORLD_SIZE")),
        };
        let port = match parsed(var, "MASTER_PORT")? {
            Some(port) => port,
            None if is_alone => 0,
            None => return Err(missing("MASTER_PORT", "WORLD_SIZE")),
        };
        Ok(Self {
            rank,
            size,
            local_rank: parsed(var, "LOCAL_RANK")?,
            address,
            port,
            has_store: var("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
            // torchrun's static rendezvous has the id "none".
            job: var("TORCHELASTIC_RUN_ID").filter(|id| id != "none"),
        })
    }

    /// Reads Slurm's variables of a job step. A step with one task is a single process.
    fn slurm(var: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let size = match parsed(var, "SLURM_STEP_NUM_TASKS")? {
            Some(size) => Some(size),
            None => parsed(var, "SLURM_NTASKS")?,
        };
        let Some(size) = size.filter(|&size: &usize| size > 1) else {
            return Ok(None);
        };
        let nodes = var("SLURM_STEP_NODELIST")
            .or_else(|| var("SLURM_NODELIST"))
            .ok_or_else(|| missing("SLURM_STEP_NODELIST", "SLURM_STEP_ID"))?;
        let job: u64 = required(var, "SLURM_JOB_ID", "SLURM_STEP_ID")?;
        let (first, count) = SLURM_PORTS;
        let port = match parsed(var, "MASTER_PORT")? {
            Some(port) => port,
            None => u16::try_from(first + job % count).unwrap_or(u16::MAX),
        };
        Ok(Some(Self {
            rank: required(var, "SLURM_PROCID", "SLURM_STEP_ID")?,
            size,
            local_rank: parsed(var, "SLURM_LOCALID")?,
            address: match var("MASTER_ADDR") {
                Some(address) => address,
                None => first_node(&nodes).ok_or_else(|| {
                    wrong(format!(
                        "SLURM_STEP_NODELIST is not a list of hosts: {nodes}"
                    ))
                })?,
            },
            port,
            has_store: false,
            job: Some(job.to_string()),
        }))
    }
}

/// Returns the first host of Slurm's list, such as `gpu[07-10,12],login1`.
fn first_node(nodes: &str) -> Option<String> {
    let end = nodes.find([',', '[']).unwrap_or(nodes.len());
    let (start, rest) = nodes.split_at(end);
    let Some(list) = rest.strip_prefix('[') else {
        return (!start.is_empty()).then(|| start.to_owned());
    };
    let (list, after) = list.split_once(']')?;
    let number = list.split([',', '-']).next()?;
    let suffix = after.split([',', '[']).next()?;
    (!number.is_empty()).then(|| format!("{start}{number}{suffix}"))
}

/// Returns the value of a variable that must be set if `other` is.
fn required<T: FromStr>(
    var: &dyn Fn(&str) -> Option<String>,
    name: &str,
    other: &str,
) -> Result<T> {
    parsed(var, name)?.ok_or_else(|| missing(name, other))
}

fn parsed<T: FromStr>(var: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<T>> {
    let Some(value) = var(name) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(wrong(format!("{name} is not a valid number: {value}"))),
    }
}

fn missing(name: &str, other: &str) -> Error {
    wrong(format!("{other} is set, but {name} is not"))
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Config, message).hint(
        "start the ranks with torchrun, srun or --nproc; or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each; for a single process, unset them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Launch>> {
        let vars: std::collections::HashMap<_, _> = vars.iter().copied().collect();
        Launch::read(&|name| vars.get(name).map(|value| (*value).to_owned()))
    }

    fn refusal(vars: &[(&str, &str)]) -> String {
        read(vars).expect_err("refused").message().to_owned()
    }

    #[test]
    fn without_a_launcher_there_is_one_process() {
        assert_eq!(read(&[]).expect("read"), None);
        // An interactive shell of Slurm, and a batch script, which is not a step.
        let step = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_NTASKS", "1"),
            ("SLURM_PROCID", "0"),
        ];
        assert_eq!(read(&step).expect("read"), None);
        let batch = [
            ("SLURM_NTASKS", "8"),
            ("SLURM_PROCID", "0"),
            ("SLURM_JOB_ID", "7"),
        ];
        assert_eq!(read(&batch).expect("read"), None);
    }

    #[test]
    fn torchrun_and_plain_variables_give_rank_and_store() {
        let plain = [
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29500"),
        ];
        let launch = read(&plain).expect("read").expect("ranks");
        assert_eq!((launch.rank, launch.size), (3, 8));
        assert_eq!((launch.address.as_str(), launch.port), ("10.0.0.1", 29500));
        assert_eq!(
            (launch.local_rank, launch.has_store, launch.job),
            (None, false, None)
        );
        let torchrun = [
            ("LOCAL_RANK", "1"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RUN_ID", "job7"),
        ];
        let launch = read(&[&plain[..], &torchrun].concat())
            .expect("read")
            .expect("ranks");
        assert_eq!((launch.local_rank, launch.has_store), (Some(1), true));
        assert_eq!(launch.job.as_deref(), Some("job7"));
        let alone = read(&[("RANK", "0"), ("WORLD_SIZE", "1")])
            .expect("read")
            .expect("one rank");
        assert_eq!((alone.rank, alone.size), (0, 1));
    }

    #[test]
    fn incomplete_variables_are_an_error() {
        assert_eq!(
            refusal(&[("WORLD_SIZE", "4")]),
            "WORLD_SIZE is set, but RANK is not"
        );
        assert_eq!(
            refusal(&[("RANK", "0")]),
            "RANK is set, but WORLD_SIZE is not"
        );
        assert_eq!(
            refusal(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "1")]),
            "WORLD_SIZE is set, but MASTER_ADDR is not"
        );
        assert_eq!(
            refusal(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")]),
            "WORLD_SIZE is set, but MASTER_PORT is not"
        );
        assert_eq!(
            refusal(&[("RANK", "0"), ("WORLD_SIZE", "0")]),
            "WORLD_SIZE is 0, but must be at least 1"
        );
        assert_eq!(
            refusal(&[("RANK", "two"), ("WORLD_SIZE", "2")]),
            "RANK is not a valid number: two"
        );
        let full = [("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
        assert_eq!(
            refusal(&[&full[..], &[("RANK", "2"), ("WORLD_SIZE", "2")]].concat()),
            "the rank is 2, but there are 2 ranks, numbered from 0"
        );
        assert_eq!(
            refusal(
                &[
                    &full[..1],
                    &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "70000")]
                ]
                .concat()
            ),
            "MASTER_PORT is not a valid number: 70000"
        );
    }

    #[test]
    fn slurms_variables_give_rank_and_store() {
        let step = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_JOB_ID", "123456"),
            ("SLURM_PROCID", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_STEP_NODELIST", "gpu[07-10],login"),
        ];
        let launch = read(&step).expect("read").expect("ranks");
        assert_eq!(
            (launch.rank, launch.size, launch.local_rank),
            (5, 8, Some(1))
        );
        assert_eq!((launch.address.as_str(), launch.port), ("gpu07", 23_456));
        assert_eq!(
            (launch.job.as_deref(), launch.has_store),
            (Some("123456"), false)
        );
    }

    #[test]
    fn the_first_host_of_slurms_list_is_found() {
        for (nodes, first) in [
            ("n1", "n1"),
            ("n1,n2", "n1"),
            ("gpu[001-004]", "gpu001"),
            ("gpu[3,7-9]", "gpu3"),
            ("rack[1-2]n5,other", "rack1n5"),
            ("a-b-[10-12]", "a-b-10"),
        ] {
            assert_eq!(first_node(nodes).as_deref(), Some(first), "{nodes}");
        }
        assert_eq!(first_node(""), None);
        assert_eq!(first_node("gpu[12"), None);
    }
}

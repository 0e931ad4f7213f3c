//! Which of several processes this is, as whoever started them says it in the environment.

use torch_ext::Meeting;

use crate::Error;

/// What the environment says of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Where the processes meet.
    pub meeting: Meeting,
    /// This process among those of its machine, from 0.
    pub local_rank: usize,
}

/// Where a starter of processes says what.
struct Starter {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
}

/// Those that are known. Slurm's variables are those of `srun`: in a script of `sbatch` the others are set as well.
const STARTERS: [Starter; 4] = [
    Starter { name: "torchrun", rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK" },
    Starter { name: "srun", rank: "SLURM_PROCID", size: "SLURM_STEP_NUM_TASKS", local_rank: "SLURM_LOCALID" },
    Starter {
        name: "mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Starter { name: "mpirun", rank: "PMI_RANK", size: "PMI_SIZE", local_rank: "MPI_LOCALRANKID" },
];

/// PyTorch's port for processes to meet at.
const PORT: u16 = 29500;

/// What the variables say, or nothing where this process is alone.
///
/// # Errors
/// A variable that is missing or cannot be meant.
pub fn placement(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Placement>, Error> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let is_there = |starter: &&Starter| variable(starter.rank).is_some() && variable(starter.size).is_some();
    let Some(Starter { name, rank, size, local_rank }) = STARTERS.iter().find(is_there) else {
        return Ok(None);
    };
    let number = |name: &str| -> Result<Option<usize>, Error> {
        let parsed = variable(name).map(|text| {
            text.parse().map_err(|_| Error::Usage(format!("{name}={text}: expected a whole number")))
        });
        parsed.transpose()
    };
    let (rank_number, processes) = (number(rank)?.unwrap_or(0), number(size)?.unwrap_or(1));
    if rank_number >= processes {
        return Err(Error::Usage(format!(
            "{rank}={rank_number} and {size}={processes}: the first process is 0, the last {size} - 1"
        )));
    }
    if processes == 1 {
        return Ok(None);
    }
    let on_one_machine = variable("OMPI_COMM_WORLD_LOCAL_SIZE") == variable(size) && *name == "mpirun";
    let host = variable("MASTER_ADDR")
        .or_else(|| variable("SLURM_STEP_NODELIST").filter(|_| *name == "srun").map(|list| first_host(&list)))
        .or_else(|| on_one_machine.then(|| "127.0.0.1".to_owned()));
    let host = host.ok_or_else(|| {
        Error::Usage(format!(
            "{size}={processes}, but MASTER_ADDR is not set; set it to the host of the process with {rank}=0"
        ))
    })?;
    let port = match variable("MASTER_PORT") {
        Some(text) => text
            .parse()
            .map_err(|_| Error::Usage(format!("MASTER_PORT={text}: expected a port, 1 to 65535")))?,
        // Two jobs on one machine meet at two ports.
        None => PORT + (number("SLURM_JOB_ID")?.unwrap_or(0) % 1000) as u16,
    };
    let restarts = variable("TORCHELASTIC_RESTART_COUNT").unwrap_or("0".to_owned());
    Ok(Some(Placement {
        meeting: Meeting {
            rank: rank_number,
            size: processes,
            host,
            port,
            serves: rank_number == 0 && variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() != Some("True"),
            name: format!("compact-vision/{restarts}"),
        },
        local_rank: number(local_rank)?.unwrap_or(rank_number),
    }))
}

/// The first of Slurm's list of hosts: `node[07-12,20],other` begins with `node07`.
fn first_host(list: &str) -> String {
    match list.split_once('[') {
        Some((stem, numbers)) if !stem.contains(',') => {
            let end = numbers.find([',', '-', ']']).unwrap_or(numbers.len());
            format!("{stem}{}", &numbers[..end])
        }
        _ => list.split(',').next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Placement>, Error> {
        placement(&|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn every_starter_says_who_this_is() {
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "head"),
            ("MASTER_PORT", "1234"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        let meeting = Meeting {
            rank: 5,
            size: 8,
            host: "head".to_owned(),
            port: 1234,
            serves: false,
            name: "compact-vision/2".to_owned(),
        };
        assert_eq!(of(&torchrun).unwrap().unwrap(), Placement { meeting, local_rank: 1 });

        let srun = [
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_NODELIST", "gpu[07-09,12],cpu3"),
            ("SLURM_JOB_ID", "123456"),
        ];
        let found = of(&srun).unwrap().unwrap().meeting;
        assert_eq!((found.host.as_str(), found.port, found.serves), ("gpu07", 29956, true));

        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let found = of(&mpirun).unwrap().unwrap();
        assert_eq!(
            (found.meeting.host.as_str(), found.meeting.port, found.local_rank),
            ("127.0.0.1", 29500, 1)
        );
        let elsewhere = of(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]).unwrap_err().to_string();
        assert!(elsewhere.contains("MASTER_ADDR is not set"), "{elsewhere}");
    }

    #[test]
    fn one_process_is_alone_and_nonsense_is_refused() {
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        // A script of `sbatch` is no step of `srun`.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap(), None);
        for (rank, size, part) in
            [("2", "2", "the last WORLD_SIZE - 1"), ("x", "2", "RANK=x: expected a whole")]
        {
            let error = of(&[("RANK", rank), ("WORLD_SIZE", size)]).unwrap_err();
            assert!(error.to_string().contains(part) && error.exit_code() == 2, "{error}");
        }
        for (list, host) in
            [("a", "a"), ("a,b", "a"), ("n[3]", "n3"), ("a,n[1-2]", "a"), ("n[001-100]", "n001")]
        {
            assert_eq!(first_host(list), host);
        }
    }
}

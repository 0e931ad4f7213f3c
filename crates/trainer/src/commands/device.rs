//! `device`: whether a device computes.

use run_record::machine;
use tch::{Kind, Tensor};
use trainer::process::lines::say;
use trainer::process::memory::in_words;
use trainer::{Error, process::environment};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// auto, cpu, cuda or cuda:N.
    #[arg(default_value = "auto")]
    device: String,
    /// Print errors only.
    #[arg(long)]
    quiet: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    const SIDE: i64 = 64;
    let device = environment::device(&args.device)?;
    let ones = Tensor::f_ones([SIDE, SIDE], (Kind::Float, device))?;
    let sum = ones.f_matmul(&ones)?.f_sum(Kind::Float)?.f_double_value(&[])?;
    let name = environment::device_name(device);
    if sum != (SIDE * SIDE * SIDE) as f64 {
        return Err(Error::Device { problem: format!("a product of matrices on {name} is wrong") });
    }
    if args.quiet {
        return Ok(());
    }
    let mut words = match torch_ext::gpu(device)? {
        Some(card) => {
            let driver = card.driver.map_or(String::new(), |driver| format!(", driver {driver}"));
            format!("{}{driver}", card.name)
        }
        None => format!("{}, {} threads", machine::cpu(), tch::get_num_threads()),
    };
    if let Some((free, total)) = torch_ext::memory_info(device)? {
        words += &format!(", {} of {} free", in_words(free), in_words(total));
    }
    let bf16 = if torch_ext::supports_bf16(device)? { "bf16 and f32" } else { "f32" };
    say(&format!("{name}: {words}; computes in {bf16}"));
    Ok(())
}

//! `test`: every test of the workspace, or those that the arguments of `cargo test` choose.

use anyhow::Result;

use crate::machine::libtorch::{self, FlavorChoice};
use crate::process::{Place, cargo, run_cargo};

pub(crate) fn test(place: &Place) -> Result<u8> {
    libtorch::ensure(place, FlavorChoice::Auto, None)?;
    let mut tests = cargo(place);
    place.find_libraries(&mut tests);
    run_cargo(tests.args(["test", "--release", "--workspace"]).args(std::env::args_os().skip(2)))
}

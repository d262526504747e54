//! The functions of CEL and of Kubernetes' library, by name and run-time type of their arguments.

pub mod authorizer;
mod format;
mod lists;
mod network;
mod operators;
mod optional;
mod quantity;
pub mod semver;
mod sets;
mod strings;
pub mod time;
mod urls;

pub(super) use format::NAMES as FORMATS;

use super::eval::{Error, Evaluated, Machine};
use super::value::Value;

/// The arguments of a call, the receiver first.
pub(super) type Args<'a> = Vec<Value<'a>>;

/// What a library answers: `None` when the function, or one for these values, is not its own.
pub(super) type Answer<'a> = Option<Evaluated<'a>>;

type Library = for<'a> fn(&mut Machine<'a>, &str, bool, &[Value<'a>]) -> Answer<'a>;

/// All libraries in the order in which they are asked.
const ALL: [Library; 11] = [
    operators::call,
    strings::call,
    lists::call,
    time::call,
    optional::call,
    quantity::call,
    network::call,
    urls::call,
    sets::call,
    semver::call,
    format::call,
];

/// Calls a function, or a method of `target`.
pub(super) fn call<'a>(
    machine: &mut Machine<'a>,
    function: &str,
    target: Option<Value<'a>>,
    args: Vec<Value<'a>>,
) -> Evaluated<'a> {
    machine.charge(1)?;
    let method = target.is_some();
    let all: Args<'a> = target.into_iter().chain(args).collect();
    if let Some(Value::Authorization(authorization)) = all.first() {
        return authorizer::call(machine, authorization, function, &all[1..]);
    }
    for library in ALL {
        if let Some(answer) = library(machine, function, method, &all) {
            return answer;
        }
    }
    Err(Error::overload())
}

/// A tenth of a size: what cel-go takes for looking at a text once.
pub(super) fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

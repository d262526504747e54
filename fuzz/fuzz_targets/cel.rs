//! CEL: no expression panics, overflows the stack or runs on after its budget.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mini::api::cel::{Env, Machine, Type, Value, compile, cost};
use serde_json::json;

const BUDGET: u64 = 20_000;

fuzz_target!(|source: &str| {
    let env = Env::new().with("self", Type::Dyn);
    let Ok(program) = compile(&env, source) else { return };
    let _ = cost::estimate(&program.expr, &[]);
    let object = json!({"n": 3, "s": "abc", "l": [1, 2, 3], "m": {"a": 1}, "o": [{"k": "x"}, {"k": "y"}]});
    let mut machine = Machine::new(vec![("self", Value::json(&object, None))], BUDGET);
    let _ = machine.run(&program.expr);
});

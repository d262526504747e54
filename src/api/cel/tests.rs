//! Expressions of the CEL specification and of Kubernetes' documentation.

use serde_json::{Value as Json, json};

use super::*;
use crate::api::structural::Structural;

fn run_with(source: &str, object: &Json, budget: u64) -> Result<String, String> {
    let env = Env::new().with("self", Type::Dyn);
    let program = compile(&env, source)?;
    let mut machine = Machine::new(vec![("self", Value::json(object, None))], budget);
    let value = machine.run(&program.expr).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let shown = Machine::new(vec![("v", value)], PER_CALL_LIMIT)
        .run(&compile(&Env::new().with("v", Type::Dyn), "'%s'.format([v])")?.expr)
        .map(|v| match v {
            Value::String(shown) => text.push_str(&shown),
            _ => {}
        });
    shown.map_err(|error| error.to_string())?;
    Ok(text)
}

fn run(source: &str) -> String {
    let object = json!({"n": 3, "f": 1.5, "s": "abc", "l": [1, 2, 3], "m": {"a": 1, "b": 2}, "o": [{"k": "x", "v": 1}, {"k": "y"}]});
    run_with(source, &object, PER_CALL_LIMIT).unwrap_or_else(|error| format!("error: {error}"))
}

#[test]
fn values() {
    for (source, result) in [
        ("1 + 2 * 3 - 4 / 2 % 3", "5"),
        ("-7 / 2", "-3"),
        ("7u - 8u", "error: unsigned integer overflow"),
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("1 / 0", "error: division by zero"),
        ("self.n > 2 && self.f < 2.0 || false", "true"),
        ("self.missing > 1 || true", "true"),
        ("self.missing > 1 && false", "false"),
        ("self.missing > 1", "error: no such key: missing"),
        ("self.l[5]", "error: index out of bounds: 5"),
        ("has(self.m.a) && !has(self.m.z)", "true"),
        ("self.n == 3.0 && 1u == dyn(1)", "true"),
        ("self.l.all(x, x > 0) && self.l.exists(x, x == 2) && self.l.exists_one(x, x == 2)", "true"),
        ("self.l.map(x, x > 1, x * 2)", "[4, 6]"),
        ("self.l.filter(x, x % 2 == 1)", "[1, 3]"),
        ("self.m.map(k, k + '!')", "[a!, b!]"),
        ("self.l.all(i, x, x == i + 1)", "true"),
        ("self.l.transformList(i, x, i * x)", "[0, 2, 6]"),
        ("self.m.transformMap(k, v, v + 1)", "{a: 2, b: 3}"),
        ("2 in self.l && 'a' in self.m && !(9 in self.l)", "true"),
        ("[1, 2] + [3] == self.l && {'a': 1, 'b': 2} == self.m", "true"),
        ("self.s.size() == 3 && size(self.l) == 3", "true"),
        ("self.n > 2 ? 'big' : 'small'", "big"),
        ("type(1) == int && type('') == string && type(self.l) == list", "true"),
        ("string(1.5) + string(true) + string(7)", "1.5true7"),
        ("int('42') + int(3.9)", "45"),
        ("double('1e3')", "1000"),
        ("b'ab' == bytes('ab')", "true"),
        ("cel.bind(x, self.n + 1, x * x)", "16"),
        ("self.o.filter(e, has(e.v)).map(e, e.k)", "[x]"),
        ("self.?m.?z.orValue(7)", "7"),
        ("self.?m.?a.hasValue() && self.m[?'b'].value() == 2", "true"),
        ("optional.of(3).optMap(x, x + 1).value()", "4"),
        ("[1, ?optional.none(), 3]", "[1, 3]"),
        ("{?'a': optional.of(1), ?'b': optional.none()}", "{a: 1}"),
        ("[1, 2].exists(x, x / 0 == 1)", "error: division by zero"),
    ] {
        assert_eq!(run(source), result, "{source}");
    }
}

#[test]
fn libraries() {
    for (source, result) in [
        ("'a,b,c'.split(',')", "[a, b, c]"),
        ("'a,b,c'.split(',', 2)", "[a, b,c]"),
        ("['a', 'b'].join('-')", "a-b"),
        ("'tacocat'.substring(4) + 'tacocat'.substring(0, 4)", "cattaco"),
        ("'hello mellow'.indexOf('ello', 2)", "7"),
        ("'hello mellow'.lastIndexOf('ello')", "7"),
        ("'hello hello'.replace('he', 'we', 1)", "wello hello"),
        ("' a '.trim() + 'B'.lowerAscii() + 'c'.upperAscii() + 'xyz'.charAt(1)", "abCy"),
        ("'%s is %d, %.2f, %x, %b'.format([dyn('a'), dyn(5), dyn(1.5), dyn(255), dyn(5)])", "a is 5, 1.50, ff, 101"),
        ("'abc 123'.find('[0-9]+') + '123 abc 456'.findAll('[0-9]+')[1]", "123456"),
        ("'abc'.matches('^a.c$')", "true"),
        ("[1, 2, 3].isSorted() && [3, 1].sum() == 4 && [3, 1].min() == 1 && [3, 1].max() == 3", "true"),
        ("[1, 2, 2].indexOf(2) + [1, 2, 2].lastIndexOf(2)", "3"),
        ("sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2])", "true"),
        ("quantity('1Gi').isGreaterThan(quantity('1000Mi')) && quantity('1k').asInteger() == 1000", "true"),
        (
            "isQuantity('1.3Gi') && !isQuantity('1.3GG') && quantity('50k').add(20).compareTo(quantity('50020')) == 0",
            "true",
        ),
        (
            "url('https://example.com:80/path?k=v').getHost() + url('https://example.com/a%20b').getEscapedPath()",
            "example.com:80/a%20b",
        ),
        ("url('https://[::1]:80/?k=1&k=2').getQuery()['k']", "[1, 2]"),
        ("isURL('https://a/b') && !isURL('a/b')", "true"),
        ("ip('::1').family() == 6 && ip('127.0.0.1').isLoopback() && isIP('10.0.0.1') && !isIP('10.0.0.300')", "true"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))", "true"),
        ("string(cidr('10.1.2.3/8').masked())", "10.0.0.0/8"),
        ("semver('1.2.3').isLessThan(semver('1.10.0-rc.1')) && semver('v1.2', true).major() == 1", "true"),
        ("format.dns1123Label().validate('my-label').hasValue()", "false"),
        ("format.named('dns1123Label').value().validate('My').hasValue()", "true"),
        ("timestamp('2023-05-01T10:20:30Z').getFullYear() + timestamp('2023-05-01T10:20:30Z').getMonth()", "2027"),
        ("timestamp('2023-05-01T00:00:00Z') + duration('1h30m') == timestamp('2023-05-01T01:30:00Z')", "true"),
        ("timestamp('2023-05-01T23:00:00Z').getHours('+02:00')", "1"),
        ("duration('1.5s').getMilliseconds()", "1500"),
    ] {
        assert_eq!(run(source), result, "{source}");
    }
}

#[test]
fn what_nests_as_deep_as_it_may_fits_the_stack() {
    let nested = std::thread::Builder::new().stack_size(crate::config::THREAD_STACK).spawn(nested);
    nested.expect("a thread").join().expect("it fits");
}

fn nested() {
    let nest = |open: &str, inner: &str, close: &str| format!("{}{inner}{}", open.repeat(95), close.repeat(95));
    for source in [
        nest("(1 + ", "1", ")"),
        nest("[", "1", "]"),
        nest("size([", "1", "])"),
        nest("{'a': ", "1", "}"),
        nest("[1].map(x, ", "1", ")"),
        nest("(true ? 1 : ", "1", ")"),
        nest("!(", "true", ")"),
        nest("(true || (false && ", "true", "))").replacen("(true || (false && ", "", 48).replacen("))", "", 48),
        format!("self{} == 1", ".a".repeat(95)),
        format!("1{}", " + 1".repeat(95)),
    ] {
        let shown: String = source.chars().take(40).collect();
        assert!(!run(&source).starts_with("error: ERROR: <input>:1:1: expression recursion"), "{shown}");
    }
}

#[test]
fn wrong_types_are_refused_before_anything_runs() {
    let schema = Structural::root(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "replicas": {"type": "integer"}, "name": {"type": "string"}, "any": {"x-kubernetes-int-or-string": true},
        "list": {"type": "array", "items": {"type": "string"}}, "foo-bar": {"type": "string"}, "namespace": {"type": "string"},
        "since": {"type": "string", "format": "date-time"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}}}}}}));
    let ty = types::declared(&schema, true).expect("it has a type");
    let env = Env::new().with("self", ty);
    let compiled = |source: &str| compile(&env, source).map(|program| program.ty.to_string());
    for source in [
        "self.spec.replicas > 1",
        "self.metadata.name == self.spec.name",
        "self.spec.any == 1",
        "self.spec.foo__dash__bar == '' && self.spec.`foo-bar` == '' && self.spec.__namespace__ == ''",
        "self.spec.labels['a'] == 'b' && self.spec.labels.all(k, k.size() < 5)",
        "self.spec.since < timestamp('2023-01-01T00:00:00Z')",
    ] {
        assert_eq!(compiled(source).as_deref(), Ok("bool"), "{source}");
    }
    let error = compiled("self.spec.foo > 1").expect_err("no such field");
    assert_eq!(error, "ERROR: <input>:1:10: undefined field 'foo'\n | self.spec.foo > 1\n | .........^");
    for (source, message) in [
        ("self.spec.replicas + 'a'", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("this.spec", "undeclared reference to 'this' (in container '')"),
        ("self.spec.name.foo()", "undeclared reference to 'foo' (in container '')"),
        (
            "self.spec.replicas.all(x, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        ("self.spec.name.startsWith(1)", "found no matching overload for 'startsWith' applied to 'string.(int)'"),
    ] {
        let error = compiled(source).expect_err(source);
        assert!(error.contains(message), "{source}: {error}");
    }
}

#[test]
fn nothing_runs_without_end() {
    let many: Vec<u64> = (0..1000).collect();
    let object = json!({"l": many});
    let nested = "self.l.all(a, self.l.all(b, self.l.all(c, self.l.all(d, true))))";
    let budget = Err("operation cancelled: actual cost limit exceeded".to_owned());
    assert_eq!(run_with(nested, &object, PER_CALL_LIMIT), budget);
    let mut doubling = "x == y".to_owned();
    for _ in 0..40 {
        doubling = format!("cel.bind(x, [x, x], cel.bind(y, [y, y], {doubling}))");
    }
    let doubling = format!("cel.bind(x, [1], cel.bind(y, [1], {doubling}))");
    assert_eq!(run_with(&doubling, &object, PER_CALL_LIMIT), budget);
    let mut text = "x.size() == 1".to_owned();
    for _ in 0..40 {
        text = format!("cel.bind(x, x + x, {text})");
    }
    assert_eq!(run_with(&format!("cel.bind(x, 'abcdefgh', {text})"), &object, PER_CALL_LIMIT), budget);
}

#[test]
fn estimates_grow_with_what_schemas_allow() {
    let of = |list: Json, source: &str| {
        let schema = Structural::new(&list);
        let ty = types::declared(&schema, false).expect("it has a type");
        let program = compile(&Env::new().with("self", ty), source).expect("valid");
        cost::estimate(&program.expr, &[("self", cost::Shape::Schema(&schema, false))])
    };
    let bounded = json!({"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 10}});
    let unbounded = json!({"type": "array", "items": {"type": "string"}});
    assert!(of(bounded.clone(), "self.all(x, x == 'a')") < 100);
    assert!(of(unbounded.clone(), "self.all(x, x == 'a')") > 1_000_000);
    assert!(of(bounded, "self.all(x, self.all(y, x.contains(y)))") < 10_000);
    assert!(of(unbounded, "self.all(x, self.all(y, x == y))") > 1_000_000_000_000);
}

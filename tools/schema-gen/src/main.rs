//! Generates the schema table of mini: `cargo run -- ../../src/api/schema`.
//!
//! Sources: `k8s-openapi` (types, JSON names, descriptions, required), `k8s-pb` (markers, protobuf tags) and two
//! lists of facts about the Go types that neither crate carries (`go_facts.tsv`: up to v1.20, `go_facts_since.tsv`).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quote::ToTokens;
use syn::{Attribute, Expr, Fields, Item, Lit, Meta};

/// A struct of k8s-pb.
struct Message {
    fields: Vec<PbField>,
    /// `+structType=atomic`: server-side apply takes it as a whole.
    atomic: bool,
}

struct PbField {
    name: String,
    tag: u32,
    repeated: bool,
    message: Option<String>,
    markers: Vec<String>,
}

/// A type of k8s-openapi.
struct Type {
    definition: String,
    description: String,
    gvk: Option<(String, String, String)>,
    list_kind: Option<String>,
    fields: Vec<Field>,
}

#[derive(Default)]
struct Field {
    name: String,
    rust: String,
    description: String,
    required: bool,
    tags: Vec<u32>,
    /// The pb type that has the field: the type itself or one that Go embeds.
    owner: String,
    markers: Vec<String>,
}

fn crate_source(name: &str) -> PathBuf {
    let output = Command::new("cargo").args(["metadata", "--format-version=1"]).output().expect("cargo metadata runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let package = metadata["packages"].as_array().expect("packages").iter().find(|p| p["name"] == name);
    let manifest = package.unwrap_or_else(|| panic!("no package {name}"))["manifest_path"].as_str().expect("a path");
    Path::new(manifest).parent().expect("a folder").join("src")
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else {
            files.push(path);
        }
    }
    files.sort();
}

fn docs(attributes: &[Attribute]) -> Vec<String> {
    let text = |a: &Attribute| match &a.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(lit) => match &lit.lit {
                Lit::Str(s) => Some(s.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(text).collect()
}

fn normal(name: &str) -> String {
    name.trim_start_matches("r#").chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
}

fn messages(source: &Path) -> HashMap<String, Message> {
    let mut files = Vec::new();
    rust_files(source, &mut files);
    let mut all = HashMap::new();
    for path in files {
        let module: Vec<String> =
            path.strip_prefix(source).expect("below").parent().expect("a folder").iter().map(|s| s.to_string_lossy().into()).collect();
        let file = syn::parse_file(&fs::read_to_string(&path).expect("readable")).expect("Rust");
        for item in file.items {
            let Item::Struct(item) = item else { continue };
            let Fields::Named(named) = item.fields else { continue };
            let atomic = docs(&item.attrs).iter().any(|d| ["+structType=atomic", "+mapType=atomic"].contains(&d.trim()));
            let mut fields = Vec::new();
            for field in named.named {
                let Some(prost) = field.attrs.iter().find(|a| a.path().is_ident("prost")) else { continue };
                let text = prost.meta.to_token_stream().to_string();
                let tag = text.split("tag = \"").nth(1).and_then(|t| t.split('"').next()).and_then(|t| t.parse().ok()).expect("a tag");
                let rust = field.ty.to_token_stream().to_string().replace(' ', "");
                let message = text.contains("message").then(|| {
                    let inner = rust.rsplit(['<', ',']).next().expect("a type").trim_end_matches('>').to_owned();
                    let mut path = module.clone();
                    let segments: Vec<&str> = inner.split("::").collect();
                    for segment in &segments {
                        if *segment == "super" {
                            path.pop();
                        } else {
                            path.push((*segment).to_owned());
                        }
                    }
                    path.join(".")
                });
                let markers = docs(&field.attrs).iter().filter_map(|d| d.trim().strip_prefix('+').map(str::to_owned)).collect();
                let name = field.ident.expect("a name").to_string();
                fields.push(PbField { name, tag, repeated: !text.contains("optional"), message, markers });
            }
            all.insert(format!("{}.{}", module.join("."), item.ident).to_lowercase(), Message { fields, atomic });
        }
    }
    all
}

/// The value of a Rust string literal at the start of `text`.
fn literal(text: &str) -> String {
    let mut end = 1;
    let bytes = text.as_bytes();
    while bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    syn::parse_str::<syn::LitStr>(&text[..=end]).expect("a literal").value()
}

fn openapi_type(text: &str) -> Option<Type> {
    let definition = text.strip_prefix("// Generated from definition ")?.lines().next()?.to_owned();
    let file = syn::parse_file(text).expect("Rust");
    let item = file.items.into_iter().find_map(|i| match i {
        Item::Struct(s) if definition.ends_with(&format!(".{}", s.ident)) => Some(s),
        _ => None,
    })?;
    let constant = |name: &str| {
        let at = text.find(&format!("const {name}: &'static str = "))?;
        Some(literal(&text[at..][text[at..].find('"')?..]))
    };
    let gvk = constant("KIND").map(|kind| (constant("GROUP").expect("group"), constant("VERSION").expect("version"), kind));
    let mut names: Vec<String> =
        text.split("serialize_field(&mut state, \"").skip(1).map(|t| t.split('"').next().expect("a name").to_owned()).collect();
    if gvk.is_some() {
        names.drain(..2);
    }
    let mut fields = Vec::new();
    if let Fields::Named(named) = item.fields {
        let own: Vec<_> = named.named.into_iter().collect();
        assert_eq!(own.len(), names.len(), "{definition}: {names:?}");
        for (field, name) in own.into_iter().zip(names) {
            let ident = normal(&field.ident.expect("a name").to_string());
            assert!(ident == normal(&name) || ident == "refpath", "{definition}: {ident} is not {name}");
            let rust = field.ty.to_token_stream().to_string().replace(' ', "");
            fields.push(Field { name, rust, ..Field::default() });
        }
    }
    let mut description = String::new();
    let mut field = None;
    let mut required = false;
    for line in text[text.find("fn json_schema(")?..].lines() {
        let indent = line.len() - line.trim_start().len();
        let rest = line.trim_start();
        if indent == 12 && rest.starts_with("\"description\": ") {
            description = literal(&rest["\"description\": ".len()..]);
        } else if indent == 12 && rest.starts_with("\"required\"") {
            required = true;
        } else if indent == 16 && rest.starts_with('"') {
            let name = literal(rest);
            let found = fields.iter().position(|f| f.name == name);
            if required {
                // k8s-openapi makes `metadata` of objects required; Kubernetes does not.
                if let Some(found) = found.filter(|_| gvk.is_none() || name != "metadata") {
                    fields[found].required = true;
                }
            } else {
                field = found;
            }
        } else if indent == 20 && let Some(found) = field {
            if let Some(text) = rest.strip_prefix("\"description\": ") {
                fields[found].description = literal(text);
            } else if let Some((_, text)) = rest.split_once("insert(\"description\".into(), ") {
                fields[found].description = literal(text);
            }
        }
    }
    Some(Type { definition, description, gvk, list_kind: constant("LIST_KIND"), fields })
}

/// Gives every field its tags and markers; fields of messages that Go embeds get two tags.
fn join(fields: &mut [Field], owner: &str, messages: &HashMap<String, Message>, prefix: &[u32], log: &mut Vec<String>) {
    // prost writes `AwsElasticBlockStore…` and `HttpGetAction`: the case is not to be trusted.
    let Some(message) = messages.get(&owner.to_lowercase()) else {
        log.push(format!("no message {owner}"));
        return;
    };
    for pb in &message.fields {
        let mut tags = prefix.to_vec();
        tags.push(pb.tag);
        if let Some(field) = fields.iter_mut().find(|f| normal(&f.name) == normal(&pb.name)) {
            if field.tags.is_empty() {
                field.tags = tags;
                field.owner = owner.rsplit('.').next().expect("a name").to_owned();
                field.markers = pb.markers.clone();
            }
        } else if let Some(inner) = pb.message.as_ref().filter(|_| !pb.repeated) {
            join(fields, inner, messages, &tags, log);
        } else {
            log.push(format!("no JSON field for {owner}.{}", pb.name));
        }
    }
}

fn main() {
    let out = PathBuf::from(std::env::args().nth(1).expect("the folder to write to"));
    let messages = messages(&crate_source("k8s-pb"));
    let mut files = Vec::new();
    rust_files(&crate_source("k8s-openapi").join("v1_35"), &mut files);
    let mut types: Vec<Type> = files.iter().filter_map(|f| openapi_type(&fs::read_to_string(f).expect("readable"))).collect();
    let mut log = Vec::new();
    let mut lists = Vec::new();
    for ty in &mut types {
        let owner = ty.definition.trim_start_matches("io.k8s.").replace('-', "_");
        join(&mut ty.fields, &owner, &messages, &[], &mut log);
        ty.fields.sort_by(|a, b| a.name.cmp(&b.name));
        for field in ty.fields.iter().filter(|f| f.tags.is_empty()) {
            log.push(format!("no tag for {}.{}", ty.definition, field.name));
        }
        if let (Some(list_kind), Some((group, version, kind))) = (&ty.list_kind, &ty.gvk) {
            let prefix = ty.definition.rsplit_once('.').expect("a package").0;
            let rust = ty.definition.trim_start_matches("io.k8s.").replace('-', "_").replace('.', "::");
            let field = |name: &str, rust: String, tag, required, description: &str| Field {
                name: name.into(), rust, required, tags: vec![tag], owner: list_kind.clone(), description: description.into(), markers: Vec::new(),
            };
            lists.push(Type {
                definition: format!("{prefix}.{list_kind}"),
                description: format!("{list_kind} is a list of {kind} objects."),
                gvk: Some((group.clone(), version.clone(), list_kind.clone())),
                list_kind: None,
                fields: vec![
                    field("items", format!("Vec<crate::{rust}>"), 2, true, &format!("The {kind} objects.")),
                    field("metadata", "crate::apimachinery::pkg::apis::meta::v1::ListMeta".into(), 1, false, "Standard list metadata."),
                ],
            });
        }
    }
    types.extend(lists);
    types.sort_by(|a, b| a.definition.cmp(&b.definition));
    let facts = facts();
    let index: BTreeMap<String, usize> = types
        .iter()
        .enumerate()
        .map(|(i, t)| (t.definition.trim_start_matches("io.k8s.").replace('-', "_").replace('.', "::"), i))
        .collect();
    let mut table = String::new();
    let mut texts = String::new();
    for ty in &types {
        let (group, version, kind) = ty.gvk.clone().unwrap_or_default();
        let definition = ty.definition.trim_start_matches("io.k8s.");
        let atomic = messages.get(&definition.replace('-', "_").to_lowercase()).is_some_and(|m| m.atomic);
        table += &format!("T\t{definition}\t{group}\t{version}\t{kind}\t{}\n", if atomic { "A" } else { "" });
        texts += &format!("{}\0", ty.description);
        for field in &ty.fields {
            table += &line(ty, field, &index, &facts, &mut log);
            texts += &format!("{}\0", field.description);
        }
    }
    let pack = |text: &str| zstd::bulk::compress(text.as_bytes(), 22).expect("compresses");
    fs::write(out.join("table.zst"), pack(&table)).expect("writable");
    fs::write(out.join("descriptions.zst"), pack(&texts)).expect("writable");
    fs::write("table.txt", &table).expect("writable");
    fs::write("log.txt", log.join("\n")).expect("writable");
    println!("{} types, {} fields, {} remarks (log.txt)", types.len(), types.iter().map(|t| t.fields.len()).sum::<usize>(), log.len());
}

/// (group, type, field) -> (flags, Go type).
type Facts = HashMap<(String, String, String), (String, String)>;

fn facts() -> Facts {
    let mut facts = Facts::new();
    for file in ["go_facts.tsv", "go_facts_since.tsv"] {
        for line in fs::read_to_string(file).expect("run it in its folder").lines().filter(|l| !l.starts_with('#')) {
            let c: Vec<&str> = line.split('\t').collect();
            let [group, ty, field, flags, go] = c[..] else { panic!("{file}: {line}") };
            let clean = |s: &str| if s == "-" { String::new() } else { s.to_owned() };
            facts.insert((group.into(), ty.into(), field.into()), (clean(flags), clean(go)));
        }
    }
    facts
}

/// One field: name, kind, flags, tags, and then `key=value` for what few fields have.
fn line(ty: &Type, field: &Field, index: &BTreeMap<String, usize>, facts: &Facts, log: &mut Vec<String>) -> String {
    let group = ty.definition.rsplit('.').nth(2).expect("a group").to_owned();
    let own = ty.definition.rsplit('.').next().expect("a name");
    let kind = kind(&field.rust, index);
    let key = |owner: &str| (group.clone(), owner.to_owned(), field.name.clone());
    let fact = facts.get(&key(own)).or_else(|| facts.get(&key(&field.owner)));
    let collection = kind.starts_with(['[', '{', 'y']);
    let standard = field.rust.contains("::ObjectMeta") || ty.gvk.is_some() && ["metadata", "spec", "status"].contains(&field.name.as_str());
    let (mut value, mut omit) = (field.required || standard, !field.required);
    if let Some((flags, _)) = fact {
        value |= flags.contains('v');
        omit &= !flags.contains('n');
        if flags.contains('p') {
            value = false;
            omit = false;
        }
        if flags.contains('o') {
            omit = true;
        }
    }
    let mut flags = String::new();
    if field.required {
        flags.push('r');
    }
    if value && !collection {
        flags.push('v');
    }
    if omit {
        flags.push('o');
    }
    if fact.is_some_and(|f| f.0.contains('z')) {
        flags.push('z');
    }
    let tags = field.tags.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    let mut extra = Vec::new();
    let mut keys = Vec::new();
    for marker in &field.markers {
        let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
        let value = value.trim();
        match name.trim() {
            "listType" => extra.push(format!("L={value}")),
            "listMapKey" => keys.push(value.trim_matches('"').to_owned()),
            "structType" | "mapType" if value == "atomic" => extra.push("A=1".into()),
            "patchStrategy" => extra.push(format!("S={value}")),
            "patchMergeKey" => extra.push(format!("M={value}")),
            "default" => match serde_json::from_str::<serde_json::Value>(value) {
                Ok(json) => extra.push(format!("D={json}")),
                Err(_) => log.push(format!("default of {}.{}: {value}", ty.definition, field.name)),
            },
            _ => {}
        }
    }
    if !keys.is_empty() {
        extra.push(format!("K={}", keys.join(",")));
    }
    if let Some((_, go)) = fact.filter(|f| !f.1.is_empty()) {
        extra.push(format!("G={go}"));
    }
    let extra: String = extra.iter().map(|e| format!("\t{e}")).collect();
    format!("{}\t{kind}\t{flags}\t{tags}{extra}\n", field.name)
}

/// The kind of a field, one letter or a type's index, behind `[` for a list and `{` for a map.
fn kind(rust: &str, index: &BTreeMap<String, usize>) -> String {
    let inner = |prefix: &str| rust.strip_prefix(prefix).map(|r| &r[..r.len() - 1]);
    for prefix in ["Option<", "std::boxed::Box<"] {
        if let Some(inside) = inner(prefix) {
            return kind(inside, index);
        }
    }
    if let Some(item) = inner("std::vec::Vec<").or_else(|| inner("Vec<")) {
        return format!("[{}", kind(item, index));
    }
    if let Some(item) = inner("std::collections::BTreeMap<std::string::String,") {
        let item = kind(item, index);
        return format!("{{{}", if item == "[s" { "w" } else { &item });
    }
    let path = rust.trim_start_matches("crate::");
    match path {
        "std::string::String" => "s",
        "bool" => "b",
        "i32" => "i",
        "i64" => "l",
        "f64" => "d",
        "ByteString" => "y",
        _ => match path.rsplit("::").next().expect("a name") {
            "Quantity" => "q",
            "IntOrString" => "x",
            "Time" => "t",
            "MicroTime" => "u",
            "RawExtension" => "e",
            "FieldsV1" => "f",
            "JSON" => "j",
            "JSONSchemaPropsOrArray" => "1",
            "JSONSchemaPropsOrBool" => "2",
            "JSONSchemaPropsOrStringArray" => "3",
            _ => return format!("#{}", index.get(path).unwrap_or_else(|| panic!("unknown type {path}"))),
        },
    }
    .to_owned()
}

//! The table of all built-in types, unpacked once at first use.
//!
//! Its text form is written by `tools/schema-gen`, which says where the facts come from. Descriptions are a second
//! file that is unpacked only while an OpenAPI document is made.

use std::sync::OnceLock;

use crate::api::Gvk;

static TABLE: &[u8] = include_bytes!("table.zst");
static DESCRIPTIONS: &[u8] = include_bytes!("descriptions.zst");
/// More than both files unpack to; a limit that the decompressor wants.
const UNPACKED_LIMIT: usize = 4 << 20;

/// A type of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u16);

/// What one value of a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string (or an enumeration of strings).
    String,
    /// `true` or `false`.
    Bool,
    /// A signed 32-bit number.
    Int32,
    /// A signed 64-bit number.
    Int64,
    /// A floating point number.
    Double,
    /// Bytes in base64.
    Bytes,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// `runtime.RawExtension`: any object.
    RawExtension,
    /// `metav1.FieldsV1`.
    FieldsV1,
    /// `apiextensions.JSON`: any value.
    Json,
    /// `JSONSchemaPropsOrArray`.
    SchemaOrArray,
    /// `JSONSchemaPropsOrBool`.
    SchemaOrBool,
    /// `JSONSchemaPropsOrStringArray`.
    SchemaOrStrings,
    /// A list of strings that is a message of its own in protobuf (`ExtraValue`).
    Strings,
    /// Another type of the table.
    Type(TypeId),
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One.
    One,
    /// A list.
    List,
    /// A map from strings.
    Map,
}

/// `+listType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    Atomic,
    /// Scalars, each once.
    Set,
    /// Objects that the map keys identify.
    Map,
}

/// What few fields have.
#[derive(Debug, Default)]
pub struct Markers {
    /// `+listType`.
    pub list_type: Option<ListType>,
    /// `+listMapKey`, in order.
    pub list_map_keys: Vec<&'static str>,
    /// `+structType=atomic` or `+mapType=atomic`.
    pub atomic: bool,
    /// `+patchStrategy`, comma-separated.
    pub patch_strategy: &'static str,
    /// `+patchMergeKey`.
    pub patch_merge_key: &'static str,
    /// `+default`, as JSON.
    pub default: &'static str,
    /// The name of the Go type where it is an alias, such as `v1.Protocol`.
    pub go_type: &'static str,
}

/// A field of a type.
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// How many values.
    pub shape: Shape,
    /// In OpenAPI's `required`.
    pub required: bool,
    /// Not a pointer in Go: absent means the zero value.
    pub value: bool,
    /// `omitempty` in Go.
    pub omit_empty: bool,
    /// `omitzero` in Go.
    pub omit_zero: bool,
    tags: [u8; 3],
    markers: Option<Box<Markers>>,
}

static NO_MARKERS: Markers = Markers {
    list_type: None,
    list_map_keys: Vec::new(),
    atomic: false,
    patch_strategy: "",
    patch_merge_key: "",
    default: "",
    go_type: "",
};

impl Field {
    /// The protobuf field numbers, outermost first: more than one where Go embeds a message; none for fields that
    /// protobuf does not have.
    pub fn tags(&self) -> &[u8] {
        let count = self.tags.iter().position(|t| *t == 0).unwrap_or(self.tags.len());
        &self.tags[..count]
    }
    /// The markers.
    pub fn markers(&self) -> &Markers {
        self.markers.as_deref().unwrap_or(&NO_MARKERS)
    }
}

/// A type: its names and fields.
#[derive(Debug)]
pub struct Type {
    /// The OpenAPI definition without `io.k8s.`, such as `api.core.v1.Pod`.
    pub definition: &'static str,
    /// The API group; only for kinds.
    pub group: &'static str,
    /// The version; only for kinds.
    pub version: &'static str,
    /// The kind; empty for types that are only parts.
    pub kind: &'static str,
    /// `+structType=atomic`: server-side apply takes it as a whole.
    pub atomic: bool,
    /// The fields, sorted by name; without `apiVersion` and `kind` of kinds.
    pub fields: Vec<Field>,
}

impl Type {
    /// The Go name, such as `PodSpec`.
    pub fn name(&self) -> &'static str {
        self.definition.rsplit('.').next().unwrap_or_default()
    }
    /// The package's version, as Go names it in messages: `v1` of `v1.PodSpec`.
    pub fn package(&self) -> &'static str {
        self.definition.rsplit('.').nth(1).unwrap_or_default()
    }
    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &self.fields[i])
    }
    /// Whether it has `apiVersion` and `kind`.
    pub fn is_kind(&self) -> bool {
        !self.kind.is_empty()
    }
}

impl TypeId {
    /// The type.
    pub fn get(self) -> &'static Type {
        &table().types[usize::from(self.0)]
    }
    /// All types, in the order of their definitions.
    pub fn all() -> impl Iterator<Item = TypeId> {
        (0..table().types.len()).map(|i| TypeId(u16::try_from(i).expect("the table has fewer than 65536 types")))
    }
    /// The type of a definition such as `api.core.v1.Pod`.
    pub fn of_definition(definition: &str) -> Option<TypeId> {
        let index = table().types.binary_search_by(|t| t.definition.cmp(definition)).ok()?;
        u16::try_from(index).ok().map(TypeId)
    }
    /// Its place in [`TypeId::all`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The type of a kind. The kinds of `meta/v1` (`DeleteOptions`, `Status`) belong to every group and version.
pub fn of(gvk: &Gvk) -> Option<TypeId> {
    let kinds = &table().kinds;
    let key = |id: &TypeId| {
        let ty = id.get_in(&table().types);
        (ty.group, ty.version, ty.kind)
    };
    let wanted = (gvk.group.as_ref(), gvk.version.as_ref(), gvk.kind.as_ref());
    if let Ok(index) = kinds.binary_search_by(|id| key(id).cmp(&wanted)) {
        return Some(kinds[index]);
    }
    matches!(gvk.kind.as_ref(), "DeleteOptions" | "Status" | "WatchEvent")
        .then(|| TypeId::of_definition(&format!("apimachinery.pkg.apis.meta.v1.{}", gvk.kind)))
        .flatten()
}

impl TypeId {
    fn get_in(self, types: &[Type]) -> &Type {
        &types[usize::from(self.0)]
    }
}

struct Table {
    types: Vec<Type>,
    kinds: Vec<TypeId>,
}

fn table() -> &'static Table {
    static CELL: OnceLock<Table> = OnceLock::new();
    CELL.get_or_init(|| {
        let text = String::from_utf8(unpack(TABLE)).expect("the generator wrote text");
        parse(Box::leak(text.into_boxed_str()))
    })
}

fn unpack(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::decompress(bytes, UNPACKED_LIMIT).expect("the file is part of the binary")
}

fn parse(text: &'static str) -> Table {
    let mut types: Vec<Type> = Vec::new();
    for line in text.lines() {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_default();
        let name = next();
        if name == "T" {
            types.push(Type {
                definition: next(),
                group: next(),
                version: next(),
                kind: next(),
                atomic: next() == "A",
                fields: Vec::new(),
            });
            continue;
        }
        let field = parse_field(name, next(), next(), next(), columns);
        types.last_mut().expect("a type comes before its fields").fields.push(field);
    }
    for ty in &mut types {
        ty.fields.shrink_to_fit();
    }
    let mut kinds: Vec<TypeId> = (0..types.len())
        .filter(|i| types[*i].is_kind())
        .map(|i| TypeId(u16::try_from(i).expect("the table has fewer than 65536 types")))
        .collect();
    kinds.sort_by_key(|id| {
        let ty = id.get_in(&types);
        (ty.group, ty.version, ty.kind)
    });
    Table { types, kinds }
}

fn parse_field(
    name: &'static str,
    kind: &'static str,
    flags: &'static str,
    tags: &'static str,
    extra: std::str::Split<'static, char>,
) -> Field {
    let (shape, letter) = match kind.as_bytes().first() {
        Some(b'[') => (Shape::List, &kind[1..]),
        Some(b'{') => (Shape::Map, &kind[1..]),
        _ => (Shape::One, kind),
    };
    let kind = match letter {
        "s" => Kind::String,
        "b" => Kind::Bool,
        "i" => Kind::Int32,
        "l" => Kind::Int64,
        "d" => Kind::Double,
        "y" => Kind::Bytes,
        "q" => Kind::Quantity,
        "x" => Kind::IntOrString,
        "t" => Kind::Time,
        "u" => Kind::MicroTime,
        "e" => Kind::RawExtension,
        "f" => Kind::FieldsV1,
        "j" => Kind::Json,
        "1" => Kind::SchemaOrArray,
        "2" => Kind::SchemaOrBool,
        "3" => Kind::SchemaOrStrings,
        "w" => Kind::Strings,
        other => Kind::Type(TypeId(other[1..].parse().expect("the generator wrote #<index>"))),
    };
    let mut numbers = [0u8; 3];
    for (slot, tag) in numbers.iter_mut().zip(tags.split('.')) {
        *slot = tag.parse().unwrap_or_default();
    }
    let mut markers = Markers::default();
    let mut any = false;
    for (key, value) in extra.filter_map(|e| e.split_once('=')) {
        any = true;
        match key {
            "L" => {
                markers.list_type = match value {
                    "map" => Some(ListType::Map),
                    "set" => Some(ListType::Set),
                    _ => Some(ListType::Atomic),
                }
            }
            "K" => markers.list_map_keys = value.split(',').collect(),
            "A" => markers.atomic = true,
            "S" => markers.patch_strategy = value,
            "M" => markers.patch_merge_key = value,
            "D" => markers.default = value,
            "G" => markers.go_type = value,
            _ => {}
        }
    }
    Field {
        name,
        kind,
        shape,
        required: flags.contains('r'),
        value: flags.contains('v'),
        omit_empty: flags.contains('o'),
        omit_zero: flags.contains('z'),
        tags: numbers,
        markers: any.then(|| Box::new(markers)),
    }
}

/// The descriptions, while somebody needs them.
pub struct Descriptions {
    text: String,
    /// Of each type: where its own text begins; its fields' follow.
    starts: Vec<u32>,
}

impl Descriptions {
    /// Unpacks the texts (about 900 KB; drop it soon).
    pub fn unpack() -> Self {
        let text = String::from_utf8(unpack(DESCRIPTIONS)).expect("the generator wrote text");
        let mut starts = Vec::with_capacity(table().types.len());
        let mut ends = text.bytes().enumerate().filter(|(_, b)| *b == 0).map(|(i, _)| i);
        let mut at = 0;
        for ty in &table().types {
            starts.push(u32::try_from(at).expect("the text is small"));
            for _ in 0..=ty.fields.len() {
                at = ends.next().map_or(text.len(), |end| end + 1);
            }
        }
        Self { text, starts }
    }
    /// The type's description, and then one for each field in order.
    pub fn of(&self, ty: TypeId) -> impl Iterator<Item = &str> {
        self.text[self.starts[ty.index()] as usize..].split('\0')
    }
}

/// Stands for the contents of the table in hashes of what is derived from it.
pub fn fingerprint() -> [u8; 32] {
    use sha2::{Digest, Sha256};
    Sha256::new().chain_update(TABLE).chain_update(DESCRIPTIONS).finalize().into()
}

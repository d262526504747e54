//! The tree of an expression. Macros are nodes of their own: whoever walks the tree sees what was written.

use std::sync::Arc;

/// An expression and where it is: the character in the source that errors point at.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// The offset in characters.
    pub at: usize,
    /// What it is.
    pub node: Node,
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// `1`.
    Int(i64),
    /// `1u`.
    Uint(u64),
    /// `1.0`.
    Double(f64),
    /// `'a'`.
    String(Arc<str>),
    /// `b'a'`.
    Bytes(Arc<[u8]>),
}

/// What a comprehension makes of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldKind {
    /// `all`.
    All,
    /// `exists`.
    Exists,
    /// `exists_one`, `existsOne`.
    ExistsOne,
    /// `filter`.
    Filter,
    /// `map`, `transformList`.
    Map,
    /// `transformMap`.
    TransformMap,
    /// `transformMapEntry`.
    TransformMapEntry,
}

/// A comprehension: `range.all(var, body)` and others.
#[derive(Clone, Debug, PartialEq)]
pub struct Fold {
    /// What it makes.
    pub kind: FoldKind,
    /// What it walks over.
    pub range: Expr,
    /// The variable of the element (of a map: the key); with `value` that of the index or key.
    pub var: String,
    /// The second variable of macros with two.
    pub value: Option<String>,
    /// Only these elements (`map` with three arguments, `transformList`).
    pub condition: Option<Expr>,
    /// The predicate or the element's image.
    pub body: Expr,
}

/// What an expression is.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A constant.
    Literal(Literal),
    /// A variable or the name of a type.
    Ident(String),
    /// `a.b`, or `a.?b` (an optional).
    Select {
        /// `a`.
        operand: Box<Expr>,
        /// `b`.
        field: String,
        /// Whether it is `.?`.
        optional: bool,
    },
    /// `has(a.b)`.
    Has {
        /// `a`.
        operand: Box<Expr>,
        /// `b`.
        field: String,
    },
    /// `a[i]`, or `a[?i]` (an optional).
    Index {
        /// `a`.
        operand: Box<Expr>,
        /// `i`.
        index: Box<Expr>,
        /// Whether it is `[?`.
        optional: bool,
    },
    /// A function or operator (`_+_`), perhaps on a target.
    Call {
        /// Its name.
        function: String,
        /// The receiver.
        target: Option<Box<Expr>>,
        /// The arguments.
        args: Vec<Expr>,
    },
    /// `a && b && c`.
    And(Vec<Expr>),
    /// `a || b || c`.
    Or(Vec<Expr>),
    /// `a ? b : c`.
    Conditional(Box<[Expr; 3]>),
    /// `[a, ?b]`.
    List(Vec<(Expr, bool)>),
    /// `{k: v, ?k: v}`.
    Map(Vec<(Expr, Expr, bool)>),
    /// `Name{field: value}`.
    Struct {
        /// The type.
        name: String,
        /// Its fields.
        fields: Vec<(String, Expr)>,
    },
    /// A comprehension.
    Fold(Box<Fold>),
    /// `cel.bind(name, value, body)`.
    Bind {
        /// The variable.
        name: String,
        /// What it is.
        value: Box<Expr>,
        /// Where it is known.
        body: Box<Expr>,
    },
    /// `target.optMap(var, body)` and `optFlatMap` (`flat`).
    OptMap {
        /// The optional.
        target: Box<Expr>,
        /// The variable.
        var: String,
        /// What becomes of its value.
        body: Box<Expr>,
        /// Whether the body makes an optional itself.
        flat: bool,
    },
}

impl Expr {
    /// Calls `see` for this expression and everything in it.
    pub fn walk(&self, see: &mut dyn FnMut(&Expr)) {
        see(self);
        match &self.node {
            Node::Literal(_) | Node::Ident(_) => {}
            Node::Select { operand, .. } | Node::Has { operand, .. } => operand.walk(see),
            Node::Index { operand, index, .. } => {
                operand.walk(see);
                index.walk(see);
            }
            Node::Call { target, args, .. } => {
                target.iter().for_each(|target| target.walk(see));
                args.iter().for_each(|arg| arg.walk(see));
            }
            Node::And(terms) | Node::Or(terms) => terms.iter().for_each(|term| term.walk(see)),
            Node::Conditional(parts) => parts.iter().for_each(|part| part.walk(see)),
            Node::List(items) => items.iter().for_each(|(item, _)| item.walk(see)),
            Node::Map(entries) => entries.iter().for_each(|(key, value, _)| {
                key.walk(see);
                value.walk(see);
            }),
            Node::Struct { fields, .. } => fields.iter().for_each(|(_, value)| value.walk(see)),
            Node::Fold(fold) => {
                fold.range.walk(see);
                fold.condition.iter().for_each(|condition| condition.walk(see));
                fold.body.walk(see);
            }
            Node::Bind { value, body, .. } => {
                value.walk(see);
                body.walk(see);
            }
            Node::OptMap { target, body, .. } => {
                target.walk(see);
                body.walk(see);
            }
        }
    }

    /// Whether a variable is named anywhere (a variable of a macro with the same name counts too).
    pub fn mentions(&self, name: &str) -> bool {
        let mut found = false;
        self.walk(&mut |expr| found |= matches!(&expr.node, Node::Ident(ident) if ident == name));
        found
    }
}

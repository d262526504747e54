//! The schema of a kind's objects: a type of the table, or what a CustomResourceDefinition says.

use super::table::TypeId;
use crate::api::structural::Structural;

/// What decoding, defaulting, field managers and apply go by.
#[derive(Clone, Copy)]
pub enum Root<'a> {
    /// A built-in type.
    Table(TypeId),
    /// A custom resource, and whether its status is a subresource.
    Custom(&'a Structural, bool),
}

impl From<TypeId> for Root<'static> {
    fn from(ty: TypeId) -> Self {
        Self::Table(ty)
    }
}

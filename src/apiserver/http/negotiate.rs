//! Which representation the client accepts, and which one it sends.

use http::HeaderMap;

use crate::api::{Status, StatusResult};

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// A transformation of the objects in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// The objects themselves.
    Object,
    /// `meta.k8s.io` Table in `v1` or (true) `v1beta1`.
    Table {
        /// Whether it is asked for as v1beta1.
        beta: bool,
    },
    /// Only metadata.
    PartialObjectMetadata {
        /// Whether it is asked for as v1beta1.
        beta: bool,
    },
    /// The same for lists.
    PartialObjectMetadataList {
        /// Whether it is asked for as v1beta1.
        beta: bool,
    },
}

/// What is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The encoding.
    pub encoding: Encoding,
    /// The transformation.
    pub shape: As,
}

const SUPPORTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAMS: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// Reads `Accept`: the first clause that can be served, by quality. `protobuf`: whether that encoding can be served.
///
/// # Errors
/// 406 when none can.
pub fn accept(headers: &HeaderMap, protobuf: bool) -> StatusResult<Accept> {
    choose(headers, SUPPORTED, |clause| clause.serve(protobuf))
}

/// The same for a watch, which cannot be YAML.
///
/// # Errors
/// 406 when no clause can be served.
pub fn accept_stream(headers: &HeaderMap, protobuf: bool) -> StatusResult<Accept> {
    choose(headers, STREAMS, |clause| clause.serve(protobuf).filter(|accept| accept.encoding != Encoding::Yaml))
}

fn choose(headers: &HeaderMap, supported: &str, serve: impl Fn(&Clause<'_>) -> Option<Accept>) -> StatusResult<Accept> {
    let mut clauses = Vec::new();
    for value in headers.get_all(http::header::ACCEPT) {
        clauses.extend(value.to_str().unwrap_or_default().split(',').filter_map(Clause::parse));
    }
    if clauses.is_empty() {
        return Ok(Accept { encoding: Encoding::Json, shape: As::Object });
    }
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses.iter().find_map(serve).ok_or_else(|| {
        if clauses.iter().any(Clause::is_known) {
            let why = format!("only the following media types are accepted: {supported}");
            return Status::new(406, "NotAcceptable", why);
        }
        let mut status = Status::new(406, "NotAcceptable", "406: Not Acceptable");
        status.details = serde_json::json!({});
        status
    })
}

struct Clause<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().filter(|t| !t.is_empty())?;
        let parameters: Vec<_> = parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
        let quality = parameters.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
        Some(Self { media_type, parameters, quality })
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    /// Whether the media type would do, if it were not for its parameters.
    fn is_known(&self) -> bool {
        SUPPORTED.split(", ").any(|t| t == self.media_type)
    }

    fn serve(&self, protobuf: bool) -> Option<Accept> {
        let encoding = match self.media_type {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            "application/vnd.kubernetes.protobuf" if protobuf => Encoding::Protobuf,
            _ => return None,
        };
        let shape = match (self.get("as"), self.get("g")) {
            (None, _) => As::Object,
            (Some(name), Some("meta.k8s.io")) => {
                let beta = match self.get("v") {
                    Some("v1") => false,
                    Some("v1beta1") => true,
                    _ => return None,
                };
                match name {
                    "Table" => As::Table { beta },
                    "PartialObjectMetadata" => As::PartialObjectMetadata { beta },
                    "PartialObjectMetadataList" => As::PartialObjectMetadataList { beta },
                    _ => return None,
                }
            }
            _ => return None,
        };
        // Tables have no protobuf form.
        if encoding == Encoding::Protobuf && matches!(shape, As::Table { .. }) {
            return None;
        }
        Some(Accept { encoding, shape })
    }
}

/// The encoding of a request's body, by its `Content-Type` (JSON when it has none).
///
/// # Errors
/// 415 for others.
pub fn content_type(headers: &HeaderMap) -> StatusResult<Encoding> {
    let text = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(unsupported(SUPPORTED)),
    }
}

/// 415 with the types that would do.
pub fn unsupported(supported: &str) -> Status {
    let message =
        format!("the body of the request was in an unknown format - accepted media types include: {supported}");
    Status::new(415, "UnsupportedMediaType", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept_header: &str) -> StatusResult<Accept> {
        let mut headers = HeaderMap::new();
        headers.insert("accept", accept_header.parse().expect("a header"));
        accept(&headers, true)
    }

    #[test]
    fn kubectl_gets_a_table() {
        let header = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(of(header), Ok(Accept { encoding: Encoding::Json, shape: As::Table { beta: false } }));
    }

    #[test]
    fn streams_are_json_or_protobuf() {
        let stream = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("accept", text.parse().expect("a header"));
            accept_stream(&headers, true)
        };
        let protobuf = stream("application/vnd.kubernetes.protobuf;stream=watch,application/json").expect("accepted");
        assert_eq!(protobuf.encoding, Encoding::Protobuf);
        assert_eq!(stream("application/yaml, application/json").expect("accepted").encoding, Encoding::Json);
        let refused = stream("application/yaml").expect_err("no YAML");
        assert_eq!(refused.message, format!("only the following media types are accepted: {STREAMS}"));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(of(metadata).expect("accepted").shape, As::PartialObjectMetadataList { beta: false });
    }

    #[test]
    fn quality_decides_and_unknown_versions_are_passed_over() {
        assert_eq!(of("application/yaml;q=0.2, application/json").expect("accepted").encoding, Encoding::Json);
        assert_eq!(of("application/json;as=Table;v=v9;g=meta.k8s.io").expect_err("refused").code, 406);
        assert_eq!(of("text/plain, */*").expect("accepted").encoding, Encoding::Json);
    }
}

//! gzip for large answers, as kube-apiserver sends them to clients that accept it (`APIResponseCompression`).

use std::io::Write as _;

use axum::body::Body;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

/// Smaller answers are not worth it (`defaultGzipThresholdBytes`).
const THRESHOLD: u64 = 128 * 1024;

/// Whether the client of a request takes gzip for its answer.
pub(super) fn is_accepted(method: &Method, headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    let accepts = |clause: &str| {
        let mut parts = clause.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    };
    method == Method::GET && encodings.flat_map(|text| text.split(',')).any(accepts)
}

/// The answer, compressed when it is a large one that is ready as a whole.
pub(super) async fn large(response: Response<Body>) -> Response<Body> {
    let exact = response.body().size_hint().exact();
    let plain = response.status() == StatusCode::OK && !response.headers().contains_key(header::CONTENT_ENCODING);
    if !plain || exact.is_none_or(|size| size < THRESHOLD) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else { return Response::from_parts(parts, Body::empty()) };
    let bytes = collected.to_bytes();
    let source = bytes.clone();
    let compressed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(source.len() / 4), Compression::fast());
        encoder.write_all(&source).and_then(|()| encoder.finish())
    });
    match compressed.await {
        Ok(Ok(compressed)) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, compressed.into())
        }
        // The runtime is about to end.
        _ => Response::from_parts(parts, bytes.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn only_large_answers_are_compressed() {
        let small = large(Response::new(Body::from("x".repeat(1000)))).await;
        assert!(small.headers().get(header::CONTENT_ENCODING).is_none());
        let text = "x".repeat(200_000);
        let compressed = large(Response::new(Body::from(text.clone()))).await;
        assert_eq!(compressed.headers()[header::CONTENT_ENCODING], "gzip");
        let bytes = compressed.into_body().collect().await.expect("it is whole").to_bytes();
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut plain).expect("valid gzip");
        assert_eq!(plain, text);
    }

    #[test]
    fn clients_say_what_they_take() {
        let accepted = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, text.parse().expect("a header"));
            is_accepted(&Method::GET, &headers)
        };
        assert!(accepted("gzip") && accepted("deflate, gzip;q=0.5"));
        assert!(!accepted("identity") && !accepted("gzip;q=0"));
        assert!(!is_accepted(&Method::GET, &HeaderMap::new()));
    }
}

//! The echo server: answers each request with what it received, in the layout of the tutorials' echoserver 1.4.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The port that the image listens on.
pub(super) const PORT: u16 = 8080;
/// A longer body is refused, as nginx does by default.
const BODY_LIMIT: usize = 1 << 20;
/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves until a signal ends it. As a container's first process it gets no signal that it does not ask for.
pub(super) fn run_echo() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(serve())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> std::io::Result<()> {
    let mut end = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()].map(signal);
    let [Ok(terminate), Ok(interrupt), Ok(quit)] = &mut end else {
        return Err(std::io::Error::other("signals cannot be received"));
    };
    // Both families where the kernel has IPv6.
    let any =
        [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)].map(|ip| SocketAddr::new(ip, PORT));
    let listener = TcpListener::bind(&any[..]).await?;
    println!("echo: listening on port {PORT}");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = quit.recv() => return Ok(()),
        };
        // A connection that broke before it was accepted is nobody's.
        let Ok((stream, peer)) = accepted else { continue };
        tokio::spawn(async move {
            let port = stream.local_addr().map_or(PORT, |address| address.port());
            let service =
                service_fn(move |request| async move { Ok::<_, Infallible>(answer(request, peer, port).await) });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            // The client's mistakes end its own connection.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer<B>(request: Request<B>, peer: SocketAddr, port: u16) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let (status, text) = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => (StatusCode::OK, report(&head, &body.to_bytes(), peer.ip().to_canonical(), port)),
        Err(error) if error.is::<LengthLimitError>() => (StatusCode::PAYLOAD_TOO_LARGE, Vec::new()),
        Err(_) => (StatusCode::BAD_REQUEST, Vec::new()),
    };
    let path = head.uri.path();
    println!("{} - {} {path} {}", peer.ip().to_canonical(), head.method, status.as_u16());
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::SERVER, header::HeaderValue::from_static("echoserver"));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// The answer's text. Header and body bytes are given back as they came.
fn report(head: &http::request::Parts, body: &[u8], client: IpAddr, port: u16) -> Vec<u8> {
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // The port in the URI is the server's own, as nginx has it, not the one that the client asked for.
    let host = match host.rsplit_once(':') {
        Some((name, digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let version = match head.version {
        http::Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    let mut text = format!(
        "CLIENT VALUES:\nclient_address={client}\ncommand={}\nreal path={target}\nquery={}\nrequest_version={version}\n\
         request_uri=http://{}:{port}{target}\n\nSERVER VALUES:\nserver_version=mini: {}\n\nHEADERS RECEIVED:\n",
        head.method,
        head.uri.query().unwrap_or("nil"),
        host.to_ascii_lowercase(),
        env!("CARGO_PKG_VERSION"),
    )
    .into_bytes();
    let mut headers: Vec<_> = head.headers.iter().collect();
    headers.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in headers {
        text.extend([name.as_str().as_bytes(), b"=", value.as_bytes(), b"\n"].concat());
    }
    text.extend_from_slice(b"BODY:\n");
    text.extend_from_slice(if body.is_empty() { b"-no body in request-" } else { body });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: http::request::Builder, body: &'static str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a request");
        let peer = "[::ffff:172.17.0.1]:4711".parse().expect("an address");
        let body = runtime.block_on(async { answer(request, peer, PORT).await.into_body().collect().await });
        String::from_utf8(body.expect("infallible").to_bytes().into()).expect("text")
    }

    #[test]
    fn it_answers_as_the_tutorials_show() {
        // From the Kubernetes tutorial "Using Source IP", where the server is echoserver 1.4.
        let request = Request::get("/").header("User-Agent", "curl/7.47.0").header("Host", "10.0.170.92");
        let text = check(request.header("Accept", "*/*"), "");
        let expected = "CLIENT VALUES:\nclient_address=172.17.0.1\ncommand=GET\nreal path=/\nquery=nil\n\
                        request_version=1.1\nrequest_uri=http://10.0.170.92:8080/\n\nSERVER VALUES:\nserver_version=";
        assert!(text.starts_with(expected), "{text}");
        let rest = "\n\nHEADERS RECEIVED:\naccept=*/*\nhost=10.0.170.92\nuser-agent=curl/7.47.0\nBODY:\n\
                    -no body in request-";
        assert!(text.ends_with(rest), "{text}");
    }

    #[test]
    fn query_port_and_body() {
        let text = check(Request::post("/a/b?c=d&e").header("Host", "WEB.example:30080"), "hello");
        assert!(text.contains("command=POST\nreal path=/a/b?c=d&e\nquery=c=d&e\n"), "{text}");
        assert!(text.contains("request_uri=http://web.example:8080/a/b?c=d&e\n"), "{text}");
        assert!(text.ends_with("BODY:\nhello"), "{text}");
    }
}

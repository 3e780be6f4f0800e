//! The pages, and a small server of them: one request for each connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{View, certs, metrics};

/// Requests under way at one door. For who comes later the one that has taken longest is given up: nobody who only connects
/// keeps others out.
const AT_ONCE: usize = 16;
/// From the connection to the end of its answer.
const LIMIT: Duration = Duration::from_secs(5);
/// A request's longest head; what comes behind it is not read.
const LONGEST_HEAD: usize = 16 << 10;
/// It fails again at once while descriptors are short: that must not become a busy loop.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";

/// By which way somebody came, and what is shown there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Everything.
    Operator,
    /// No more than metrics and whether the agent is ready.
    Metrics,
}

/// Everything that can be asked for.
#[derive(Debug)]
pub(super) struct Pages {
    view: View,
    registry: Registry,
}

impl Pages {
    pub(super) fn new(view: View) -> Self {
        Self { registry: metrics::registry(&view), view }
    }

    fn answer<B>(&self, request: &Request<B>, door: Door) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return page(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned());
        }
        match (request.uri().path(), door) {
            ("/metrics", _) => page(StatusCode::OK, METRICS, metrics::text(&self.registry)),
            ("/healthz/ready", _) if *self.view.ready.borrow() => page(StatusCode::OK, PLAIN, "ready\n".to_owned()),
            ("/healthz/ready", _) => page(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "not ready\n".to_owned()),
            ("/certs", Door::Operator) => page(StatusCode::OK, JSON, certs::text(&self.view)),
            _ => page(StatusCode::NOT_FOUND, PLAIN, "no such page\n".to_owned()),
        }
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Answers whoever `accept` brings, for ever.
pub(super) async fn serve<S, F>(mut accept: impl FnMut() -> F, pages: &Arc<Pages>, door: Door)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    // They end with this.
    let mut running = JoinSet::new();
    let mut oldest = VecDeque::new();
    loop {
        while running.try_join_next().is_some() {}
        oldest.retain(|request: &AbortHandle| !request.is_finished());
        match accept().await {
            Ok(stream) => {
                if oldest.len() >= AT_ONCE
                    && let Some(request) = oldest.pop_front()
                {
                    request.abort();
                }
                oldest.push_back(running.spawn(answer(stream, Arc::clone(pages), door)));
            }
            Err(error) => {
                debug!(%error, ?door, "did not answer");
                sleep(AFTER_FAILURE).await;
            }
        }
    }
}

async fn answer<S>(stream: S, pages: Arc<Pages>, door: Door)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let response = pages.answer(&request, door);
        async { Ok::<_, Infallible>(response) }
    });
    // The whole has a limit; hyper's own for the head needs a timer of its own.
    let mut server = http1::Builder::new();
    server.keep_alive(false).header_read_timeout(None).max_buf_size(LONGEST_HEAD);
    match timeout(LIMIT, server.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, ?door, "a request was not answered"),
        Err(_) => debug!(?door, "a request was not answered within {LIMIT:?}"),
    }
}

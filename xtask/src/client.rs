//! A plain HTTP client that opens a connection for each request: the demo's application. It knows nothing of Mantle.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::shell::{Context as _, Done};

/// Every wait of a request ends after this.
const LIMIT: Duration = Duration::from_secs(3);

/// Ask for a page again and again, with a connection for each request.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server.
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// Text that each request carries, for a reader of the wire to find.
    #[arg(long)]
    pub(crate) secret: String,
    /// What the page must be.
    #[arg(long)]
    pub(crate) expect: String,
    /// The file to which each request's outcome is appended, one JSON line each.
    #[arg(long)]
    pub(crate) log: PathBuf,
    /// What each request is called, with its number, so that both ends' logs can be joined.
    #[arg(long)]
    pub(crate) name: String,
    /// How many requests; 0 = until this is ended.
    #[arg(long, default_value_t = 0)]
    pub(crate) count: u64,
    /// Milliseconds from one request to the next.
    #[arg(long, default_value_t = 40)]
    pub(crate) every: u64,
}

/// Makes the requests.
pub(crate) fn run(arguments: &Arguments) -> Done {
    let log = &arguments.log;
    let mut file = File::options().create(true).append(true).open(log).context(log.display())?;
    let mut number = 0;
    while arguments.count == 0 || number < arguments.count {
        let began = Instant::now();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = json!({ "request": format!("{}-{number}", arguments.name), "at": at.as_secs_f64() });
        outcome(&mut line, request(arguments, number));
        line["took_ms"] = json!(began.elapsed().as_secs_f64() * 1000.0);
        // One write for each line, so that a reader never sees half of one.
        file.write_all(format!("{line}\n").as_bytes()).context(log.display())?;
        number += 1;
        thread::sleep(Duration::from_millis(arguments.every).saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// What a request that worked has to tell.
struct Answer {
    local: SocketAddr,
    peer: SocketAddr,
}

fn outcome(line: &mut Value, answer: io::Result<Answer>) {
    match answer {
        Ok(answer) => {
            line["ok"] = json!(true);
            line["local"] = json!(answer.local);
            line["peer"] = json!(answer.peer);
        }
        Err(error) => {
            line["ok"] = json!(false);
            line["error"] = json!(error.to_string());
        }
    }
}

fn request(arguments: &Arguments, number: u64) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&arguments.to, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    let head = format!(
        "GET / HTTP/1.1\r\nHost: web\r\nX-Secret: {}\r\nX-Request: {}-{number}\r\nConnection: close\r\n\r\n",
        arguments.secret, arguments.name
    );
    stream.write_all(head.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let whole = text.starts_with("HTTP/1.1 200 ") && text.ends_with(&arguments.expect);
    if !whole {
        return Err(io::Error::other(format!("not the whole page: {text:?}")));
    }
    Ok(Answer { local, peer })
}

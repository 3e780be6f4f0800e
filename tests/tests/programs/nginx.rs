//! curl and nginx.

use std::fs;
use std::process::Command;

use agent_tests::traffic::Pattern;
use agent_tests::{Notes, Pair, Pod, Process, compare, patterns, wait};

use crate::DEVIATIONS;
use crate::running::{command, finish, note, run, serve, url};

const LARGE: usize = 32 << 20;

const CONFIG: &str = "
daemon off;
master_process off;
pid FOLDER/nginx.pid;
events {}
http {
    log_format seen '$remote_addr $server_addr:$server_port $request $status $body_bytes_sent';
    access_log FOLDER/access.log seen;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    client_max_body_size 0;
    server {
        listen PORT;
        root FOLDER;
        location /hello { return 200 'hello $remote_addr\n'; }
        location /upload {
            client_body_in_file_only on;
            proxy_set_header X-File $request_body_file;
            proxy_set_body off;
            proxy_pass http://127.0.0.1:BEHIND;
        }
    }
    server { listen 127.0.0.1:BEHIND; location / { return 200 '$http_x_file'; } }
}
";

#[test]
fn curl_and_nginx() {
    compare(&[], patterns![requests, a_large_download, a_large_upload, a_slow_download], DEVIATIONS);
}

/// nginx in the web's pod, and its folder.
pub(crate) fn start(pair: &Pair, port: u16) -> (Process, std::path::PathBuf) {
    let folder = pair.folder.join(format!("nginx-{port}"));
    fs::create_dir_all(&folder).unwrap();
    let text = CONFIG.replace("FOLDER", folder.to_str().unwrap()).replace("PORT", &port.to_string());
    fs::write(folder.join("nginx.conf"), text.replace("BEHIND", &pair.port().to_string())).unwrap();
    let mut nginx = pair.web.namespace.command("nginx");
    nginx.arg("-p").arg(&folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(folder.join("nginx.conf"));
    (serve(pair, "nginx", &mut nginx, port), folder)
}

fn curl(pod: &Pod) -> Command {
    let mut curl = command(pod, "curl");
    curl.args(["--silent", "--show-error", "--no-progress-meter", "--noproxy", "*"]);
    curl
}

fn requests(pair: &Pair, notes: &mut Notes) {
    const SEEN: &str = "%{http_code} connects=%{num_connects} from=%{local_ip} to=%{remote_ip}\n";
    let port = pair.port();
    let (_nginx, folder) = start(pair, port);
    let hello = url(pair.at(&pair.web, port), "/hello");
    run(notes, "one", curl(&pair.client).args(["-w", SEEN, &hello]));
    run(notes, "three on one connection", curl(&pair.client).args(["-w", SEEN, &hello, &hello, &hello]));
    let close = ["-w", SEEN, "-H", "Connection: close", &hello, &hello];
    run(notes, "each on its own", curl(&pair.client).args(close));
    run(notes, "HTTP/1.0", curl(&pair.client).args(["--http1.0", "-w", SEEN, &hello]));
    run(notes, "nothing there", curl(&pair.client).args(["-o", "-", &url(pair.at(&pair.web, port), "/nowhere")]));
    run(notes, "from the node's other pod", curl(&pair.neighbour).args(["-w", SEEN, &hello]));
    run(notes, "from the pod itself", curl(&pair.web).args(["-w", SEEN, &hello]));
    // It is written when a request has been answered.
    let log = wait::until("every request is in the log", || {
        let log = fs::read_to_string(folder.join("access.log")).ok()?;
        (log.lines().count() == 10).then_some(log)
    });
    notes.note("the log", log.replace(&format!(":{port} "), " "));
}

fn a_large_download(pair: &Pair, notes: &mut Notes) {
    download(pair, notes, &[]);
}

fn a_slow_download(pair: &Pair, notes: &mut Notes) {
    download(pair, notes, &["--limit-rate", "24M"]);
}

fn download(pair: &Pair, notes: &mut Notes, more: &[&str]) {
    let port = pair.port();
    let (_nginx, folder) = start(pair, port);
    Pattern::new(7).send(&mut fs::File::create(folder.join("large")).unwrap(), LARGE).unwrap();
    let output = finish(curl(&pair.client).args(more).arg(url(pair.at(&pair.web, port), "/large")), Vec::new());
    notes.note("as it was sent", Pattern::new(7).expect(&mut output.stdout.as_slice(), LARGE).is_ok());
    notes.note("and no more", (output.stdout.len(), output.status.code()));
}

fn a_large_upload(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let (_nginx, folder) = start(pair, port);
    let file = folder.join("large");
    Pattern::new(8).send(&mut fs::File::create(&file).unwrap(), LARGE).unwrap();
    let from = format!("@{}", file.display());
    let output = finish(
        curl(&pair.client).args(["--data-binary", &from, &url(pair.at(&pair.web, port), "/upload")]),
        Vec::new(),
    );
    let stored = String::from_utf8_lossy(&output.stdout).into_owned();
    notes.note("status", output.status.code());
    match fs::File::open(&stored) {
        Ok(mut file) => notes.note("as it was sent", Pattern::new(8).expect(&mut file, LARGE).is_ok()),
        Err(_) => note(notes, "no file", &output),
    }
}

//! The demo's two nodes and four pods, its server and its client.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::requests::Request;
use super::{NAME, requests};
use crate::mesh::{Mesh, Mode, Pod};
use crate::say;
use crate::shell::{self, Context as _, Done, Failure};
use crate::world::namespace::Namespace;
use crate::world::nodes::{Nodes, WIRE};
use crate::world::process::Process;
use crate::world::wire::Capture;
use crate::world::{World, wait};

/// Where the server listens.
pub(super) const WEB: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 10), 80);
/// The client's pod.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
/// The enrolled pod that the CA does not know.
pub(super) const GHOST: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 20);
/// The pod outside the mesh.
pub(super) const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 66);

/// The page that the server has.
const PAGE: &str = "hello from web";

/// Everything that the story is told with.
pub(super) struct Stage {
    pub(super) mesh: Mesh,
    pub(super) client: Namespace,
    pub(super) ghost: Namespace,
    pub(super) stranger: Namespace,
    /// What each request carries and no wire may show.
    pub(super) secret: String,
    /// When every agent had acknowledged that both pods serve, since the epoch.
    pub(super) published: Duration,
    /// The capture that runs from the enrolment on.
    pub(super) capture: Option<Capture>,
    node_b: Namespace,
    web: Namespace,
    nginx: Process,
    asking: Option<Process>,
    xtask: PathBuf,
    // Last, so that the processes' handles are gone when the world takes everything away.
    pub(super) world: World,
}

impl Stage {
    /// Makes the network and starts the server; Mantle does not run yet.
    pub(super) fn set(mantle: PathBuf) -> Done<Self> {
        say::heading("Two nodes and four pods, of network namespaces");
        let world = World::begin(NAME)?;
        let nodes = Nodes::make(&world)?;
        let pod = |name, address| {
            let pod = nodes.pod(&world, name, address)?;
            say::line(format!("{name:<9} {address}"));
            Done::Ok(pod)
        };
        let (client, web) = (pod("client", CLIENT)?, pod("web", *WEB.ip())?);
        let (ghost, stranger) = (pod("ghost", GHOST)?, pod("stranger", STRANGER)?);
        let nginx = serve(&world, &web)?;
        let xtask = mantle.with_file_name("xtask");
        let mesh = Mesh::prepare(&world, mantle, [("node-a", &nodes.a), ("node-b", &nodes.b)])?;
        Ok(Self {
            mesh,
            client,
            ghost,
            stranger,
            secret: secret(),
            published: Duration::ZERO,
            capture: None,
            node_b: nodes.b,
            web,
            nginx,
            asking: None,
            xtask,
            world,
        })
    }

    /// The pods in the directory, the ghost included.
    pub(super) fn pods(&self, mode: Mode, serving: bool) -> Vec<Pod> {
        let client = Pod::listed("client", "5f0f4d6e-94e1-4d53-8a4e-2f6d3c1b7a01", CLIENT, &self.client);
        let web = Pod::listed("web", "b2d7c9a4-6e0b-4a8f-b1c3-9e5d8f2a4c02", *WEB.ip(), &self.web);
        let ghost = Pod::listed("ghost", "0e8c1c52-3c67-4d0c-9d5b-7c1f0a6f9b03", GHOST, &self.ghost);
        vec![
            Pod { mode, serving, ..client },
            Pod { mode, serving, ..web },
            // Without a certificate it never serves.
            Pod { mode, certified: false, ..ghost },
        ]
    }

    /// Begins to write down what passes between the nodes.
    pub(super) fn capture(&self, name: &str) -> Done<Capture> {
        Capture::begin(&self.world, &self.node_b, WIRE, name)
    }

    /// One request from `place`, and how it went.
    pub(super) fn ask(&self, name: &str, place: &Namespace) -> Done<Request> {
        let mut command = self.asking_command(name);
        command.args(["--count", "1"]);
        shell::output(&mut place.command(&command))?;
        let requests = requests::read(&self.world.folder().join(format!("requests-{name}.jsonl")))?;
        requests.into_iter().last().ok_or_else(|| Failure::new("the client said nothing"))
    }

    /// Starts the client's loop: a request, with a connection of its own, 25 times a second.
    pub(super) fn start_asking(&mut self) -> Done {
        self.asking = Some(self.world.spawn("client", &self.client, &self.asking_command("loop"))?);
        Ok(())
    }

    /// Every request of the client's loop so far.
    pub(super) fn asked(&self) -> Done<Vec<Request>> {
        requests::read(&self.world.folder().join("requests-loop.jsonl"))
    }

    /// Waits until the loop has made `count` requests that began after `since`, and gives them.
    pub(super) fn asked_since(&mut self, since: Duration, count: usize) -> Done<Vec<Request>> {
        wait(&format!("the client asks {count} times"), Duration::from_secs(20), || {
            self.check()?;
            let mut asked = self.asked()?;
            asked.retain(|request| request.at > since);
            Ok((asked.len() >= count).then_some(asked))
        })
    }

    /// The server's log: for each request's name, who asked and whom, as the server sees it.
    pub(super) fn served(&self) -> Done<Vec<(String, SocketAddr, SocketAddr)>> {
        let path = self.world.folder().join("access.log");
        let text = fs::read_to_string(&path).context(path.display())?;
        let line = |line: &str| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        text.lines().map(|text| line(text).ok_or_else(|| Failure::new(format!("nginx logged `{text}`")))).collect()
    }

    /// Fails when a process of the demo has ended by itself.
    pub(super) fn check(&mut self) -> Done {
        self.nginx.check()?;
        self.asking.as_mut().map_or(Ok(()), Process::check)?;
        self.mesh.check()
    }

    /// Leaves everything but the client's loop running.
    pub(super) fn keep(self) -> Done {
        if let Some(asking) = self.asking {
            asking.end(nix::sys::signal::Signal::SIGTERM, Duration::from_secs(5))?;
        }
        self.world.keep();
        Ok(())
    }

    /// Takes everything away.
    pub(super) fn end(self) -> Done {
        self.world.end()
    }

    fn asking_command(&self, name: &str) -> Command {
        let log = self.world.folder().join(format!("requests-{name}.jsonl"));
        let mut command = Command::new(&self.xtask);
        command.args(["client", "--to", &WEB.to_string(), "--secret", &self.secret, "--expect", PAGE, "--name", name]);
        command.arg("--log").arg(log);
        command
    }
}

/// The time since the epoch, as captures and logs have it.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Text that nothing else has.
fn secret() -> String {
    format!("secret-{:x}-{:x}", now().as_nanos(), std::process::id())
}

/// Starts nginx in `pod` and waits until it answers there.
fn serve(world: &World, pod: &Namespace) -> Done<Process> {
    let folder = world.folder().display().to_string();
    let config = world.folder().join("nginx.conf");
    fs::write(&config, NGINX.replace("FOLDER", &folder).replace("PAGE", PAGE)).context(config.display())?;
    let mut command = Command::new("nginx");
    command.args(["-p", &folder, "-e", &format!("{folder}/nginx-error.log"), "-c"]).arg(&config);
    let mut nginx = world.spawn("nginx", pod, &command)?;
    let pid = world.folder().join("nginx.pid");
    wait("nginx serves", Duration::from_secs(10), || {
        nginx.check()?;
        // nginx listens before it writes this.
        Ok(pid.exists().then_some(()))
    })?;
    Ok(nginx)
}

const NGINX: &str = r#"daemon off;
user root;
worker_processes 1;
pid FOLDER/nginx.pid;
events { worker_connections 512; }
http {
    log_format peers '$http_x_request $remote_addr:$remote_port $server_addr:$server_port $status';
    access_log FOLDER/access.log peers;
    client_body_temp_path FOLDER/nginx-body;
    proxy_temp_path FOLDER/nginx-proxy;
    fastcgi_temp_path FOLDER/nginx-fastcgi;
    uwsgi_temp_path FOLDER/nginx-uwsgi;
    scgi_temp_path FOLDER/nginx-scgi;
    server {
        listen 80;
        location / { default_type text/plain; return 200 "PAGE"; }
    }
}
"#;

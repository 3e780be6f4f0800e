//! Programs that get several addresses of a name go on to the next where one cannot be had.

use agent_tests::traffic::Server;
use agent_tests::{Mesh, Pod, Side};

use crate::running::{command, finish};

const HTTP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nyes";

fn serve(pod: &Pod) -> Server {
    Server::start(pod, "0.0.0.0:80".parse().unwrap(), |mut stream, _| {
        use std::io::{Read as _, Write as _};
        let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(HTTP));
    })
}

/// Which address curl took of those that the name `web` has for it.
fn taken(client: &Pod, addresses: &[&Pod]) -> String {
    let listed: Vec<String> = addresses.iter().map(|pod| pod.address.to_string()).collect();
    let mut curl = command(client, "curl");
    curl.args(["--silent", "--noproxy", "*", "--resolve", &format!("web:80:{}", listed.join(","))]);
    let output = finish(curl.args(["-o", "-", "-w", " %{remote_ip}", "http://web/"]), Vec::new());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn curl_takes_the_next_address_when_the_clients_agent_is_gone() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let outside = mesh.world.pod("outside", Side::B);
    let _servers = [serve(&web), serve(&outside)];
    let answer = |pod: &Pod| format!("yes {}", pod.address);
    assert_eq!(taken(&client, &[&web, &outside]), answer(&web));
    mesh.agent(Side::A).kill();
    assert_eq!(taken(&client, &[&web, &outside]), answer(&outside));
    mesh.restart(Side::A);
    assert_eq!(taken(&client, &[&web, &outside]), answer(&web));
}

//! Connections without number, and those that take their time.

use super::{
    device::{Device, Line},
    *,
};

/// Waits for a connection's end and says how long that took.
fn end_of(mut tls: Tls) -> (Duration, String) {
    let started = Instant::now();
    let said = read_to_end(&mut tls);
    (started.elapsed(), said)
}

#[test]
fn handshakes_and_heads_that_never_end_hold_up_nobody() {
    let node = Node::start(&[("LIMITS__HEADER_TIMEOUT", "3s")]);
    let honest = Honest::start(&node);
    let address = node.client_address();
    let count = 700 * factor().min(10);
    honest.speak_through(&format!("{count} handshakes that do not come"), || {
        // more than a worker of actix-web lets into its handshake at once
        let silent: Vec<_> = (0..count)
            .map(|n| {
                let mut socket = TcpStream::connect(address).unwrap();
                if n % 2 == 0 {
                    socket.write_all(&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]).unwrap();
                }
                socket
            })
            .collect();
        let heads: Vec<_> = (0..50)
            .map(|_| {
                let mut tls = node.connect(address, &[]);
                tls.write_all(b"POST /v1/dequeue HT").unwrap();
                tls
            })
            .collect();
        for mut socket in silent {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut said = Vec::new();
            let ended = socket.read_to_end(&mut said);
            assert!(ended.is_ok() || ended.unwrap_err().kind() != std::io::ErrorKind::WouldBlock);
        }
        for head in heads {
            let (_, said) = end_of(head);
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
        }
    });
    assert!(node.cuts("client", "handshake") >= count as u64);
}

#[test]
fn a_second_head_that_never_ends_ends_its_connection_however_it_trickles() {
    let node = Node::start(&[
        ("LIMITS__HEADER_TIMEOUT", "1s"),
        ("LIMITS__KEEP_ALIVE", "1s"),
        ("LIMITS__BODY_TIMEOUT", "1s"),
    ]);
    thread::scope(|threads| {
        for (listener, address, path) in listeners(&node) {
            let whole =
                &format!("POST {path} HTTP/1.1\r\nHost: a\r\n{OCTETS}Content-Length: 1\r\n\r\nx");
            // behind an answer, and in one piece with a whole request
            for pipelined in [false, true] {
                let node = &node;
                let first = if pipelined { format!("{whole}POST {path}") } else { whole.clone() };
                threads.spawn(move || {
                    let mut line = Line::at(node, address);
                    line.tls.write_all(first.as_bytes()).unwrap();
                    assert_eq!(line.answer().0, 400, "{listener}");
                    let started = Instant::now();
                    while line.tls.write_all(b"a").and_then(|()| line.tls.flush()).is_ok() {
                        thread::sleep(Duration::from_millis(100));
                        assert!(started.elapsed() < PATIENCE, "it trickles on at {listener}");
                    }
                });
            }
            // a body that trickles
            let node = &node;
            threads.spawn(move || {
                let mut tls = node.connect(address, &[]);
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: a\r\n{OCTETS}Content-Length: 10000\r\n\r\n"
                );
                tls.write_all(head.as_bytes()).unwrap();
                let started = Instant::now();
                while tls.write_all(b"a").and_then(|()| tls.flush()).is_ok() {
                    thread::sleep(Duration::from_millis(100));
                    assert!(started.elapsed() < PATIENCE, "it trickles on at {listener}");
                }
            });
        }
    });
    for (listener, ..) in listeners(&node) {
        assert!(node.cuts(listener, "idle") >= 1, "{listener}");
        node.until("nothing is open", |node| {
            let open = format!("mimid_http_connections_open{{listener=\"{listener}\"}}");
            node.metric(&open) == 0
        });
    }
}

/// Each listener by its name, with its address and where it takes a body; one of a single byte is malformed to both.
pub(super) fn listeners(node: &Node) -> [(&'static str, SocketAddr, &'static str); 2] {
    [
        ("client", node.client_address(), "/v1/dequeue"),
        ("federation", node.federation_address(), "/deliver_message"),
    ]
}

#[test]
fn who_does_not_read_an_answer_loses_its_connection() {
    let node = Node::start(&[("LIMITS__READ_TIMEOUT", "1s")]);
    for (listener, address, path) in listeners(&node) {
        let one = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{OCTETS}Content-Length: 1\r\n\r\nx");
        // answers until no buffer between us holds any more
        let mut tls = node.connect(address, &[]);
        tls.sock.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let many = one.repeat(1000);
        let mut went = 0;
        while tls.write_all(many.as_bytes()).is_ok() {
            went += many.len();
            assert!(went < 1 << 30);
        }
        node.until("it is cut off", |node| node.cuts(listener, "slow_reader") >= 1);
        // one that reads slowly, and not too slowly, is served to the end
        let mut slow = node.connect(address, &[]);
        let asked = 200;
        slow.write_all(one.repeat(asked).as_bytes()).unwrap();
        slow.write_all(b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let (mut said, mut buffer) = (Vec::new(), [0; 2048]);
        while let Ok(len @ 1..) = slow.read(&mut buffer) {
            said.extend_from_slice(&buffer[..len]);
            thread::sleep(Duration::from_millis(10));
        }
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.matches("HTTP/1.1 ").count(), asked + 1, "{listener}");
    }
}

#[test]
fn an_address_has_its_share_of_connections_and_requests() {
    let node = Node::start(&[
        ("LIMITS__LOOPBACK_IS_PROXY", "false"),
        ("LIMITS__CONNECTIONS_PER_ADDRESS_MAX", "20"),
        ("RATES__ADDRESS_PER_SECOND", "5"),
        ("RATES__ADDRESS_BURST", "60"),
    ]);
    let address = node.client_address();
    let held: Vec<_> = (0..20).map(|_| node.connect(address, &[])).collect();
    let refused = node.connect_with(address, node.tls(&[])).map(|_| ());
    assert!(refused.is_err(), "a 21st");
    assert!(node.cuts("client", "address_full") >= 1);
    drop(held);
    node.until("their places come back", |node| {
        node.metric("mimid_http_connections_open{listener=\"client\"}") == 0
    });
    // more requests than it may make: told when to come again
    let mut line = Line::to(&node);
    let told = (0..300).map(|_| line.post("/v1/dequeue", b"x").0).find(|status| *status != 400);
    assert_eq!(told, Some(429));
    // more connections than that: closed before they cost a handshake
    for _ in 0..200 {
        let _ = node.connect_with(address, node.tls(&[]));
    }
    assert!(node.cuts("client", "address_rate") >= 1);
}

#[test]
fn connections_beyond_all_that_there_may_be_wait_and_a_node_says_how_many_it_may_have() {
    let node = Node::start(&[
        ("LIMITS__CONNECTIONS_MAX", "40"),
        ("LIMITS__KEEP_ALIVE", "1s"),
        ("LIMITS__HEADER_TIMEOUT", "1s"),
    ]);
    let log = fs::read_to_string(node.folder.path().join("log")).unwrap();
    assert!(log.contains("connections"), "{log}");
    let address = node.client_address();
    let silent: Vec<_> = (0..120).map(|_| TcpStream::connect(address).unwrap()).collect();
    let open = node.metric("mimid_http_connections_open{listener=\"client\"}");
    assert!(open <= 41, "{open}");
    // whoever comes then is served as soon as the silent ones have had their time
    let mut line = Line::to(&node);
    let device = Device::new("alice");
    assert_eq!(line.post("/v1/register", &device.registration()).0, 200);
    drop(silent);
}

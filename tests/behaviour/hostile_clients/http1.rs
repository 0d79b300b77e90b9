//! TLS and HTTP/1.1, bent.

use super::*;

#[test]
fn what_is_not_tls_1_3_with_our_protocols_gets_no_connection() {
    let node = Node::start(&[]);
    for address in [node.client_address(), node.federation_address()] {
        let listener = if address == node.client_address() { "client" } else { "federation" };
        let before = node.cuts(listener, "tls");
        // TLS 1.2
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut old = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        old.alpn_protocols = vec![b"http/1.1".to_vec()];
        let error = node.connect_with(address, Arc::new(old)).unwrap_err().to_string();
        assert!(error.contains("ProtocolVersion"), "{error}");
        // another protocol within it
        let error = node.connect_with(address, node.tls(&[b"spdy/3"])).unwrap_err().to_string();
        assert!(error.contains("NoApplicationProtocol"), "{error}");
        // no TLS at all, a record that is too long, half a hello, nonsense
        let mut long = vec![22, 3, 1, 0xff, 0xff];
        long.resize(100_000, 0);
        let hello = [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
        for bytes in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &long, &[0; 64]] {
            let mut socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = socket.write_all(bytes);
            let mut said = Vec::new();
            // an alert, and its end
            let _ = socket.read_to_end(&mut said);
            assert!(said.len() < 16 && !said.starts_with(b"HTTP"), "{said:?}");
        }
        let mut half = TcpStream::connect(address).unwrap();
        half.write_all(&hello).unwrap();
        drop(half);
        node.until("all are counted", |node| node.cuts(listener, "tls") >= before + 6);
        let said =
            node.said(address, b"GET /nowhere HTTP/1.1\r\nConnection: close\r\nHost: a\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
    }
}

/// The statuses of the answers in what was said, in order.
fn statuses(said: &str) -> Vec<u16> {
    let lines = said.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().unwrap()).collect()
}

#[test]
fn requests_that_could_be_read_in_two_ways_are_refused_and_end_their_connection() {
    let node = Node::start(&[("LIMITS__HEADER_TIMEOUT", "2s"), ("LIMITS__KEEP_ALIVE", "2s")]);
    // a second request in what one of two readers would take for the first one's body
    let smuggled = "POST /v1/dequeue HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let post = |headers: &str, body: &str| {
        format!("POST /v1/dequeue HTTP/1.1\r\nHost: a\r\n{OCTETS}{headers}\r\n{body}")
    };
    let cases = [
        (
            "both lengths",
            post(
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 80\r\n", smuggled)),
        ("a list of lengths", post("Content-Length: 0, 80\r\n", smuggled)),
        ("a signed length", post("Content-Length: +0\r\n", smuggled)),
        ("a negative length", post("Content-Length: -1\r\n", smuggled)),
        ("a length in hex", post("Content-Length: 0x10\r\n", smuggled)),
        ("a length past all", post("Content-Length: 99999999999999999999999\r\n", smuggled)),
        ("another coding last", post("Transfer-Encoding: chunked, identity\r\n", smuggled)),
        (
            "another coding first",
            post("Transfer-Encoding: gzip, chunked\r\n", &format!("0\r\n\r\n{smuggled}")),
        ),
        ("another coding", post("Transfer-Encoding: xchunked\r\n", smuggled)),
        (
            "a space before the colon",
            post("Transfer-Encoding : chunked\r\n", &format!("0\r\n\r\n{smuggled}")),
        ),
        ("a folded header", post("X: a\r\n chunked\r\nContent-Length: 0\r\n", smuggled)),
        ("a header without a colon", post("nonsense\r\n", smuggled)),
        ("a NUL in a header", post("X: a\0b\r\nContent-Length: 0\r\n", smuggled)),
        ("a chunk size past all", post("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nx")),
        (
            "a chunk size that is none",
            post("Transfer-Encoding: chunked\r\n", "0x1\r\nx\r\n0\r\n\r\n"),
        ),
        ("a chunk that is longer", post("Transfer-Encoding: chunked\r\n", "1\r\nxyz\r\n0\r\n\r\n")),
        ("no version", "GET /\r\n\r\n".to_owned()),
        ("a version to come", "GET / HTTP/3.0\r\nHost: a\r\n\r\n".to_owned()),
        ("a method with nonsense", "G\x7fT / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a path with a NUL", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
    ];
    for address in [node.client_address(), node.federation_address()] {
        for (name, request) in &cases {
            let said = node.said(address, request.as_bytes());
            let statuses = statuses(&said);
            assert!(statuses.len() <= 1, "{name}: one request was taken for two: {said}");
            assert!(statuses.iter().all(|status| (400..500).contains(status)), "{name}: {said}");
        }
    }
}

#[test]
fn heads_without_measure_are_refused() {
    let node = Node::start(&[("LIMITS__HEADER_TIMEOUT", "2s"), ("LIMITS__KEEP_ALIVE", "2s")]);
    let address = node.client_address();
    let large = "x".repeat(200_000);
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let cases = [
        format!("GET /{large} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
        format!("{large} / HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}"),
    ];
    for request in cases {
        let said = node.said(address, request.as_bytes());
        let statuses = statuses(&said);
        assert!(
            statuses.is_empty() || statuses == [400] || statuses == [414] || statuses == [431],
            "{}: {said}",
            &request[..60]
        );
    }
    // chunk extensions are read over, and bounded by the time and bytes of their body
    let mut extended = format!(
        "POST /v1/dequeue HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{OCTETS}Transfer-Encoding: chunked\r\n\r\n"
    );
    for _ in 0..100 {
        extended.push_str(&format!("1;{}\r\nx\r\n", "e".repeat(1000)));
    }
    extended.push_str("0\r\n\r\n");
    let said = node.said(address, extended.as_bytes());
    assert_eq!(statuses(&said), [400], "{said}");
}

#[test]
fn a_path_is_what_it_says_letter_by_letter() {
    let node = Node::start(&[]);
    let address = node.client_address();
    for path in [
        "/v1/../v1/dequeue",
        "/v1/./dequeue",
        "/./v1/dequeue",
        "//v1/dequeue",
        "/v1//dequeue",
        "/v1/dequeue/",
        "/v1/dequeue%00",
        "/v1/dequeue%2f",
        "/v1/%2e%2e/v1/dequeue",
        "/v1/..%2f..%2fetc/passwd",
        "/v1\\dequeue",
        "/V1/DEQUEUE",
        "/v1/dequeue;x=1",
        "/metrics",
        "/v1/peers",
        "/v1/import_group",
        "/livez",
    ] {
        let said = node.said(
            address,
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{OCTETS}Content-Length: 1\r\n\r\nx")
                .as_bytes(),
        );
        assert!(matches!(statuses(&said)[..], [400 | 404]), "{path}: {said}");
    }
    for request in [
        "OPTIONS * HTTP/1.1",
        "CONNECT 127.0.0.1:22 HTTP/1.1",
        "TRACE /v1/dequeue HTTP/1.1",
        "GET http://127.0.0.1:22/ HTTP/1.1",
        "PROPFIND / HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let said = node
            .said(address, format!("{request}\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(
            statuses(&said).iter().all(|status| (400..500).contains(status)),
            "{request}: {said}"
        );
    }
    // a host that is not ours, none, or two: it means nothing here, and nothing that is answered has it
    for host in ["Host: evil.example\r\n", "", "Host: a\r\nHost: evil.example\r\n", "Host: \r\n"] {
        let said = node.said(
            address,
            format!("POST /v1/dequeue HTTP/1.1\r\n{host}Connection: close\r\n{OCTETS}Content-Length: 1\r\n\r\nx")
                .as_bytes(),
        );
        assert_eq!(statuses(&said), [400], "{host}: {said}");
        assert!(!said.contains("evil"), "{said}");
    }
}

#[test]
fn coded_bodies_are_refused_unread_and_pipelines_are_answered_in_order() {
    let node = Node::start(&[]);
    let address = node.client_address();
    for coding in ["gzip", "deflate", "br", "zstd", "identity", "gzip, gzip"] {
        // ten kilobytes that would be ten megabytes
        let said = node.said(
            address,
            format!("POST /v1/dequeue HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{OCTETS}Content-Encoding: {coding}\r\nContent-Length: 10000\r\n\r\n")
                .as_bytes(),
        );
        assert_eq!(statuses(&said), [415], "{coding}: {said}");
    }
    let one = format!("POST /v1/dequeue HTTP/1.1\r\nHost: a\r\n{OCTETS}Content-Length: 1\r\n\r\nx");
    let mut pipeline = one.repeat(500);
    pipeline.push_str("GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut tls = node.connect(address, &[]);
    tls.sock.set_nonblocking(false).unwrap();
    let writing = pipeline.clone();
    // what is not read yet stands still, and neither side is to wait for ever
    tls.write_all(writing.as_bytes()).unwrap();
    let statuses = statuses(&read_to_end(&mut tls));
    assert_eq!(statuses.len(), 501);
    assert_eq!(statuses.last(), Some(&404));
    assert!(statuses[..500].iter().all(|status| *status == 400));
    // who expects is told to go on, once, and then waited for no longer than for others
    let said = node.said(
        address,
        format!("POST /v1/dequeue HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{OCTETS}Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx")
            .as_bytes(),
    );
    let answers: Vec<u16> =
        said.split("HTTP/1.1 ").skip(1).map(|line| line[..3].parse().unwrap()).collect();
    assert!(answers == [100, 400] || answers == [400], "{said}");
    // nothing is switched to but the stream
    for upgrade in ["h2c", "TLS/1.0", "websocket"] {
        let said = node.said(
            address,
            format!("GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: {upgrade}\r\n\r\n")
                .as_bytes(),
        );
        assert!(!said.starts_with("HTTP/1.1 101"), "{said}");
    }
}

//! HTTP/2 (RFC 9113) by hand, as no client library would speak it.

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

pub(super) struct Http2 {
    tls: Tls,
}

#[derive(Debug)]
pub(super) struct Frame {
    kind: u8,
    /// 0: of the connection.
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Of the frame that begins with `head`.
fn stream_of(head: &[u8]) -> u32 {
    u32::from_be_bytes([head[5], head[6], head[7], head[8]])
}

/// RFC 7541: POST and https by their indices; :authority, :path and content-type as literals that are not indexed.
fn post(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87];
    let mut literal = |index: &[u8], value: &str| {
        block.extend(index);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    };
    literal(&[0x01], "localhost");
    literal(&[0x04], path);
    literal(&[0x0f, 0x10], "application/octet-stream");
    block
}

impl Http2 {
    pub(super) fn connect(node: &Node, address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut tls = node.connect(address, &[b"h2"]);
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        bytes.extend(frame(SETTINGS, 0, 0, &payload));
        bytes.extend(frame(SETTINGS, ACK, 0, &[]));
        tls.write_all(&bytes).unwrap();
        Self { tls }
    }

    /// A whole request.
    pub(super) fn post(&mut self, stream: u32, path: &str, body: &[u8]) {
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &post(path));
        bytes.extend(frame(DATA, END_STREAM, stream, body));
        self.tls.write_all(&bytes).unwrap();
    }

    /// The next frame; none where the connection has ended.
    fn take(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.read(&mut head)?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        self.read(&mut payload)?;
        Some(Frame { kind: head[3], stream: stream_of(&head), payload })
    }

    fn read(&mut self, buffer: &mut [u8]) -> Option<()> {
        self.tls
            .read_exact(buffer)
            .map_err(|error| {
                let is_open = error.kind() == std::io::ErrorKind::WouldBlock;
                assert!(!is_open, "nothing came and it is open");
            })
            .ok()
    }

    /// Sends `bytes` again and again, a moment between two, and keeps what comes, until a frame of this kind has come on this
    /// stream: that one.
    fn trickle(&mut self, bytes: &[u8], came: &mut Vec<u8>, stream: u32, kind: u8) -> Frame {
        self.tls.sock.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let started = Instant::now();
        loop {
            self.tls.write_all(bytes).unwrap();
            let mut buffer = [0; 4096];
            match self.tls.read(&mut buffer) {
                Ok(len @ 1..) => came.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                ended => panic!("the connection ended: {ended:?} {:?}", frames(came)),
            }
            let mut all = frames(came).into_iter();
            if let Some(found) = all.find(|it| (it.stream, it.kind) == (stream, kind)) {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "it goes on: {:?}", frames(came));
        }
    }

    /// Writes until the connection is ended from the other side, reading along. Gives how much went and how it was ended.
    fn pour(
        mut self,
        mut next: impl FnMut(usize) -> Vec<u8>,
        bytes_max: usize,
    ) -> (usize, Vec<Frame>) {
        self.tls.sock.set_nonblocking(true).unwrap();
        let is_later = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        let (mut went, mut came, mut buffer) = (0, Vec::new(), vec![0; 65536]);
        let (mut now, mut at, mut n) = (Vec::new(), 0, 0);
        let started = Instant::now();
        loop {
            if at == now.len() {
                (now, at) = (next(n), 0);
                n += 1;
            }
            match self.tls.write(&now[at..]) {
                Ok(len) => {
                    at += len;
                    went += len;
                }
                Err(error) if is_later(&error) => thread::yield_now(),
                Err(_) => break,
            }
            match self.tls.read(&mut buffer) {
                Ok(0) => break,
                // the beginning says how it goes; it is not kept when it becomes much
                Ok(len) if came.len() < 1 << 20 => came.extend_from_slice(&buffer[..len]),
                Ok(_) => {}
                Err(error) if is_later(&error) => {}
                Err(_) => break,
            }
            if went >= bytes_max || started.elapsed() > PATIENCE {
                break;
            }
        }
        (went, frames(&came))
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let Some(payload) = bytes.get(9..9 + len) else { break };
        frames.push(Frame { kind: bytes[3], stream: stream_of(bytes), payload: payload.to_vec() });
        bytes = &bytes[9 + len..];
    }
    frames
}

#[test]
fn what_breaks_http_2_ends_the_connection_or_the_stream() {
    let node = Node::start(&[("LIMITS__HEADER_TIMEOUT", "2s"), ("LIMITS__KEEP_ALIVE", "2s")]);
    let upper = {
        let mut block = post("/v1/dequeue");
        block.extend(b"\x00\x03X-A\x01b");
        block
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("data on an idle stream", frame(DATA, 0, 1, b"x")),
        ("a stream of the server's number", frame(HEADERS, END_HEADERS, 2, &post("/"))),
        ("headers on stream 0", frame(HEADERS, END_HEADERS, 0, &post("/"))),
        ("headers that are no HPACK", frame(HEADERS, END_HEADERS, 1, &[0xff; 30])),
        (
            "a frame that is too large",
            [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 1000]].concat(),
        ),
        ("a promise", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        (
            "a window that is too large",
            [
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            ]
            .concat(),
        ),
        ("a window of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("settings that are no settings", frame(SETTINGS, 0, 0, &[0; 5])),
        ("a ping that is none", frame(PING, 0, 0, &[0; 7])),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &post("/"))),
        (
            "another frame between headers",
            [frame(HEADERS, 0, 1, &post("/")), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
    ];
    for address in [node.client_address(), node.federation_address()] {
        for (name, bytes) in &cases {
            let mut http = Http2::connect(&node, address, &[]);
            let _ = http.tls.write_all(bytes);
            let mut last = None;
            while let Some(frame) = http.take() {
                last = Some(frame);
            }
            assert!(last.is_some_and(|last| last.kind == GOAWAY), "{name}");
        }
        // a name in upper case
        let mut http = Http2::connect(&node, address, &[]);
        let _ = http.tls.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &upper));
        let said = std::iter::from_fn(|| http.take());
        let said = said.take_while(|frame| ![RST_STREAM, GOAWAY].contains(&frame.kind)).count();
        assert!(said < 8, "it is not refused");
        // no preface, or half of one
        for preface in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n"] {
            let mut tls = node.connect(address, &[b"h2"]);
            tls.write_all(preface).unwrap();
            let said = read_to_end(&mut tls);
            assert!(!said.contains("HTTP/1.1 200"), "{said}");
        }
    }
    assert!(node.cuts("client", "preface") >= 1);
}

#[test]
fn headers_that_grow_in_the_table_or_never_end_are_cut_off() {
    let node = Node::start(&[]);
    for address in [node.client_address(), node.federation_address()] {
        // one header of 4,000 bytes into the table, and then 4,000 times the byte that names it: 16 MB from 8 KB
        let mut bomb = post("/v1/dequeue");
        bomb.extend(b"\x40\x01a\x7f");
        // 3,900 as an HPACK integer with a prefix of seven bits
        bomb.extend([0xbd, 0x1d]);
        bomb.extend(vec![b'v'; 127 + 0x3d + 0x1d * 128]);
        bomb.extend(vec![0xbe; 4000]);
        let mut http = Http2::connect(&node, address, &[]);
        let before = node.memory_kib("VmHWM");
        for stream in 0..50u32 {
            if http
                .tls
                .write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * stream + 1, &bomb))
                .is_err()
            {
                break;
            }
        }
        let mut refused = 0;
        while let Some(frame) = http.take() {
            match frame.kind {
                RST_STREAM | GOAWAY => refused += 1,
                // 431, by its literal value
                HEADERS => {
                    assert!(
                        frame.payload.windows(3).any(|part| part == b"431")
                            || frame.payload.len() < 40,
                        "{frame:?}"
                    );
                    refused += 1;
                }
                _ => {}
            }
            if refused >= 50 || frame.kind == GOAWAY {
                break;
            }
        }
        assert!(refused > 0);
        let grew = node.memory_kib("VmHWM").saturating_sub(before);
        assert!(grew < 32 * 1024, "{grew} KiB for 50 requests of 8 KiB");

        let endless = Http2::connect(&node, address, &[]);
        let (went, _) = endless.pour(
            |n| {
                let kind = if n == 0 { HEADERS } else { CONTINUATION };
                frame(kind, 0, 1, &b"\x00\x01a\x01b".repeat(1000))
            },
            64 << 20,
        );
        assert!(went < 16 << 20, "{went} bytes of headers were taken");
        let empty = Http2::connect(&node, address, &[]);
        let (went, _) = empty.pour(
            |n| {
                if n == 0 {
                    frame(HEADERS, 0, 1, &post("/"))
                } else {
                    frame(CONTINUATION, 0, 1, &[])
                }
            },
            16 << 20,
        );
        assert!(went < 16 << 20, "{went} bytes of empty continuations were taken");
    }
}

#[test]
fn streams_without_number_are_refused_and_those_that_are_reset_end_the_connection() {
    let node = Node::start(&[]);
    let honest = Honest::start(&node);
    let address = node.client_address();
    honest.speak_through("streams of HTTP/2", || {
        // bodies that do not come: 128 wait, the rest is refused
        let mut http = Http2::connect(&node, address, &[]);
        for n in 0..1000 {
            http.tls
                .write_all(&frame(HEADERS, END_HEADERS, 2 * n + 1, &post("/v1/dequeue")))
                .unwrap();
        }
        let mut refused = 0;
        while refused < 1000 - 128 {
            let frame = http.take().expect("it goes on");
            refused += u32::from(frame.kind == RST_STREAM);
        }
        let open = node.metric("mimid_http_requests_in_flight{listener=\"client\"}");
        assert!((1..=140).contains(&open), "{open} at work");
        drop(http);

        // CVE-2023-44487
        let before = node.cuts("client", "resets");
        let rapid = Http2::connect(&node, address, &[]);
        let (went, _) = rapid.pour(
            |n| {
                let stream = u32::try_from(2 * n + 1).unwrap();
                let mut bytes = frame(HEADERS, END_HEADERS, stream, &post("/v1/dequeue"));
                bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
                bytes
            },
            32 << 20,
        );
        assert!(went < 32 << 20, "{went} bytes of resets");
        node.until("it is counted", |node| node.cuts("client", "resets") > before);
    });
}

#[test]
fn a_body_that_trickles_is_answered_in_time_and_reset_and_holds_up_nobody() {
    const TRICKLING: u32 = 1;
    const BESIDE: u32 = 3;
    const BEHIND: u32 = 5;
    // longer than anybody here waits: nothing but the body's own time may end it
    let long = "10m";
    let node = Node::start(&[
        ("LIMITS__BODY_TIMEOUT", "1s"),
        ("LIMITS__ANSWER_TIMEOUT", long),
        ("LIMITS__HEADER_TIMEOUT", "5m"),
        ("LIMITS__KEEP_ALIVE", long),
        ("LIMITS__READ_TIMEOUT", long),
    ]);
    let honest = Honest::start(&node);
    let listeners = floods::listeners(&node);
    let attack = |listener: &str, address, path| {
        let mut http = Http2::connect(&node, address, &[]);
        http.tls.write_all(&frame(HEADERS, END_HEADERS, TRICKLING, &post(path))).unwrap();
        let byte = frame(DATA, 0, TRICKLING, b"a");
        // others of the same connection are answered, meanwhile and behind it
        http.post(BESIDE, path, b"x");
        let mut came = Vec::new();
        http.trickle(&byte, &mut came, BESIDE, HEADERS);
        let reset = http.trickle(&byte, &mut came, TRICKLING, RST_STREAM);
        http.post(BEHIND, path, b"x");
        http.trickle(&[], &mut came, BEHIND, HEADERS);
        // PROTOCOL.md: it is told why, and NO_ERROR
        let is_said = |frame: &Frame| (frame.stream, frame.kind) == (TRICKLING, DATA);
        let said = frames(&came).into_iter().filter(is_said).flat_map(|frame| frame.payload);
        let said = String::from_utf8_lossy(&said.collect::<Vec<_>>()).into_owned();
        assert!(said.contains("did not arrive in time"), "{listener}: {said}");
        assert_eq!(reset.payload, [0; 4], "{listener}");
    };
    honest.speak_through("bodies of HTTP/2 that trickle", || {
        for (listener, address, path) in listeners {
            attack(listener, address, path);
        }
    });
    for (listener, _, path) in listeners {
        let at_work = format!("mimid_http_requests_in_flight{{listener=\"{listener}\"}}");
        node.until("nothing is at work", |node| node.metric(&at_work) == 0);
        let series = format!(
            "mimid_http_requests_total{{endpoint=\"{path}\",listener=\"{listener}\",status=\"408\"}}"
        );
        // on a machine that stalls an honest body may be late, too
        assert!(node.metric(&series) >= 1, "{series}");
    }
}

#[test]
fn floods_of_control_frames_hold_up_nobody() {
    let node = Node::start(&[
        ("LIMITS__READ_TIMEOUT", "2s"),
        ("LIMITS__KEEP_ALIVE", "3s"),
        ("LIMITS__HEADER_TIMEOUT", "2s"),
    ]);
    let honest = Honest::start(&node);
    let address = node.client_address();
    let bytes = factor() * (4 << 20);
    honest.speak_through("control frames of HTTP/2", || {
        for (name, bytes_of_one) in [
            ("pings", frame(PING, 0, 0, &[7; 8]).repeat(500)),
            ("settings", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]).repeat(500)),
            ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]).repeat(500)),
            ("windows", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(500)),
            ("unknown", frame(0xbe, 0, 0, &[7; 8]).repeat(500)),
        ] {
            let http = Http2::connect(&node, address, &[]);
            let (went, _) = http.pour(|_| bytes_of_one.clone(), bytes);
            println!("{name}: {went} bytes taken");
        }
        // empty data of requests that are at work (RUSTSEC-2026-0258: they pile up where a body is not read)
        let mut http = Http2::connect(&node, address, &[]);
        for n in 0..100 {
            http.tls
                .write_all(&frame(HEADERS, END_HEADERS, 2 * n + 1, &post("/v1/dequeue")))
                .unwrap();
        }
        let before = node.memory_kib("VmHWM");
        let of_each: Vec<u8> = (0..100).flat_map(|n| frame(DATA, 0, 2 * n + 1, &[])).collect();
        let (went, _) = http.pour(|_| of_each.repeat(5), 8 * bytes);
        let grew = node.memory_kib("VmHWM").saturating_sub(before);
        println!("empty data of 100 streams: {} frames taken, {grew} KiB for them", went / 9);
        assert!(grew < 32 * 1024, "{grew} KiB for {went} bytes of empty data");
        // and who does not read what is answered to its pings
        let mut deaf = Http2::connect(&node, address, &[]);
        deaf.tls.sock.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let pings = frame(PING, 0, 0, &[7; 8]).repeat(5000);
        let mut went = 0;
        while deaf.tls.write_all(&pings).is_ok() {
            went += pings.len();
            assert!(went < 1 << 30);
        }
        println!("pings of one that does not read: {went} bytes taken");
        node.until("it is cut off", |node| {
            node.cuts("client", "slow_reader") + node.cuts("client", "idle") >= 1
        });
    });
}

#[test]
fn who_reads_nothing_of_its_answers_loses_its_streams_and_an_idle_connection_ends() {
    let node = Node::start(&[
        ("LIMITS__READ_TIMEOUT", "1s"),
        ("LIMITS__KEEP_ALIVE", "1s"),
        ("LIMITS__HEADER_TIMEOUT", "1s"),
    ]);
    let address = node.client_address();
    // SETTINGS_INITIAL_WINDOW_SIZE 0: no byte of an answer may be sent
    let mut http = Http2::connect(&node, address, &[(4, 0)]);
    for n in 0..20 {
        http.post(2 * n + 1, "/v1/dequeue", b"x");
    }
    let mut cancelled = 0;
    while cancelled < 20 {
        let frame = http.take().expect("it goes on");
        cancelled += usize::from(frame.kind == RST_STREAM && frame.payload == [0, 0, 0, 8]);
    }
    assert_eq!(node.cuts("client", "slow_stream"), 20);
    // no stream: it is ended, though it answers pings all the while
    while http.take().is_some() {}
    assert!(node.cuts("client", "idle") >= 1);
}

#[test]
fn answers_larger_than_every_window_come_whole() {
    let node = Node::start(&[]);
    runtime().block_on(async {
        let (alice, bob, group) = node.group(["alice", "bob"]).await;
        for _ in 0..60 {
            alice.send_text(&group, &"x".repeat(100_000)).await.unwrap();
        }
        let mut taken = 0;
        while taken < 60 {
            taken += bob.receive(0).await.unwrap();
        }
    });
}

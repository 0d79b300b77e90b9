//! Request bodies without end, over TLS: how much of one a listener takes before the connection ends, and that whoever reads
//! gets the answer all the same.

use std::io::{self, ErrorKind};

use super::{federation::federates, *};
use crate::hostile::came_before_its_end;

const LIMIT: usize = 256 * 1024;

/// What one side's kernel may hold that nobody has read: twice the most that Linux grows a socket's buffer to.
const BUFFERED: usize = 2 * (4 + 6) * 1024 * 1024;

fn small() -> Provider {
    Provider::start_with(|config| {
        federates(config, "a.example");
        config.limits.request_bytes_max = server::config::Bytes(LIMIT as u64);
    })
}

/// Writes `head` and then `part` over and over until the connection ends, reading all the while. Gives how many bytes went
/// and what came.
fn pour(
    mut tls: StreamOwned<ClientConnection, TcpStream>,
    head: &[u8],
    part: &[u8],
) -> (usize, String) {
    tls.write_all(head).unwrap();
    tls.sock.set_nonblocking(true).unwrap();
    let is_later = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
    let (mut went, mut came, mut buffer) = (0, Vec::new(), [0; 4096]);
    // its end may be seen where something is written before all that came is read
    loop {
        match tls.write(&part[went % part.len()..]) {
            Ok(len) => went += len,
            Err(error) if is_later(&error) => {}
            Err(_) => {
                came.extend(came_before_its_end(&mut tls));
                break;
            }
        }
        match tls.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => came.extend_from_slice(&buffer[..len]),
            Err(error) if is_later(&error) => std::thread::yield_now(),
            Err(_) => {
                came.extend(came_before_its_end(&mut tls));
                break;
            }
        }
        assert!(went < 2 * LIMIT + BUFFERED, "{went} bytes were taken, and there is no end");
    }
    (went, String::from_utf8_lossy(&came).into_owned())
}

#[test]
fn a_body_without_end_is_taken_no_further_and_its_sender_reads_why() {
    let provider = small();
    let chunked = {
        let mut part = b"4000\r\n".to_vec();
        part.extend(vec![0; 0x4000]);
        part.extend(b"\r\n");
        part
    };
    let plain = vec![0; 0x4000];
    let endless = "Transfer-Encoding: chunked\r\n";
    let declared = "Content-Length: 999999999999\r\n";
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let (client, federation) = (provider.client_address(), provider.federation_address());
    // too large when it has come so far, or by its head; nowhere; of another kind
    let cases = [
        (client, "/v1/key_packages", format!("{OCTETS}{endless}"), &chunked, 413),
        (client, "/v1/key_packages", format!("{OCTETS}{declared}"), &plain, 413),
        (client, "/nowhere", format!("{OCTETS}{endless}"), &chunked, 404),
        (client, "/nowhere", format!("{OCTETS}{declared}"), &plain, 404),
        (client, "/nowhere", upgrade.to_owned(), &plain, 404),
        (client, "/v1/key_packages", endless.to_owned(), &chunked, 415),
        (federation, "/deliver_message", format!("{OCTETS}{endless}"), &chunked, 413),
        (federation, "/deliver_message", format!("{OCTETS}{declared}"), &plain, 413),
        (federation, "/nowhere", format!("{OCTETS}{endless}"), &chunked, 404),
    ];
    // each connection lingers: all at once
    std::thread::scope(|threads| {
        for (address, path, headers, part, status) in cases {
            let provider = &provider;
            threads.spawn(move || {
                let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
                let (went, came) = pour(provider.connect_to(address), head.as_bytes(), part);
                let begins = came.starts_with(&format!("HTTP/1.1 {status} "));
                assert!(begins, "{head}{went} bytes: {came}");
                assert!(came.to_lowercase().contains("\r\nconnection: close\r\n"), "{came}");
            });
        }
    });
}

#[test]
fn who_sends_all_of_a_body_before_it_reads_is_answered_too() {
    let provider = small();
    let answer = provider.post("/v1/key_packages", OCTETS, &vec![0; LIMIT + LIMIT / 2]);
    assert_eq!((answer.status, answer.client_error().name()), (413, "too_large"));
    assert!(answer.has_header("connection: close"), "{}", answer.head);
}

#[test]
fn a_connection_goes_on_behind_a_refusal_whose_body_was_read() {
    let provider = small();
    let mut tls = provider.connect();
    for _ in 0..3 {
        let head = "POST /v1/dequeue HTTP/1.1\r\nHost: localhost\r\n";
        let request = format!("{head}{OCTETS}Content-Length: 7\r\n\r\ngarbage");
        tls.write_all(request.as_bytes()).unwrap();
        let answer = Answer::read(&mut tls);
        assert_eq!(answer.status, 400);
        assert!(!answer.has_header("connection: close"), "{}", answer.head);
    }
}

#[test]
fn a_stream_of_http_2_without_end_is_reset_behind_its_answer() {
    let provider = small();
    for (address, path) in [
        (provider.client_address(), "/v1/key_packages"),
        (provider.federation_address(), "/deliver_message"),
    ] {
        let mut http = Http2::connect(&provider, address);
        http.post(path);
        let mut went = 0;
        // as much as it lets us, as a peer that keeps to HTTP/2 does: it cannot ask for less later
        let ended = loop {
            let now = http.window.min(http.stream_window).min(0x4000);
            if now > 0 {
                http.frame(DATA, 0, STREAM, &vec![0; now]);
                http.window -= now;
                http.stream_window -= now;
                went += now;
                assert!(went <= LIMIT + http.first_window, "{went} bytes were taken");
            } else if let Some(ended) = http.take() {
                break ended;
            }
        };
        assert_eq!(ended, Reset { no_error: true }, "{path}");
        assert!(went > LIMIT && http.answered, "{path}: {went} bytes");
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const STREAM: u32 = 1;

#[derive(Debug, PartialEq, Eq)]
struct Reset {
    no_error: bool,
}

/// RFC 9113 by hand, one stream of it: a client library would stop by itself.
struct Http2 {
    tls: StreamOwned<ClientConnection, TcpStream>,
    window: usize,
    stream_window: usize,
    /// What the server lets a stream send before it has read any of it.
    first_window: usize,
    answered: bool,
}

impl Http2 {
    fn connect(provider: &Provider, address: SocketAddr) -> Self {
        let mut tls = provider.tls(&[&rustls::version::TLS13]);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(tls), name).unwrap();
        let tls = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
        let (window, first_window) = (65_535, 65_535);
        let mut http =
            Self { tls, window, stream_window: first_window, first_window, answered: false };
        http.tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        http.frame(SETTINGS, 0, 0, &[]);
        http.frame(SETTINGS, ACK, 0, &[]);
        http
    }

    fn post(&mut self, path: &str) {
        // RFC 7541: POST and https by their indices; :authority, :path and content-type as literals
        let mut block = vec![0x83, 0x87];
        let mut literal = |index: &[u8], value: &str| {
            block.extend(index);
            block.push(u8::try_from(value.len()).unwrap());
            block.extend(value.as_bytes());
        };
        literal(&[0x01], "localhost");
        literal(&[0x04], path);
        literal(&[0x0f, 0x10], "application/octet-stream");
        self.frame(HEADERS, END_HEADERS, STREAM, &block);
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.tls.write_all(&frame).unwrap();
    }

    /// Takes one frame; says so when it ends the stream.
    fn take(&mut self) -> Option<Reset> {
        let mut head = [0; 9];
        self.tls.read_exact(&mut head).unwrap();
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        self.tls.read_exact(&mut payload).unwrap();
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        let stream = number(&head[5..9]);
        match head[3] {
            SETTINGS => {
                for setting in payload.chunks(6).filter(|setting| setting[..2] == [0, 4]) {
                    let first_window = number(&setting[2..]);
                    self.stream_window += first_window - self.first_window;
                    self.first_window = first_window;
                }
            }
            WINDOW_UPDATE if stream == 0 => self.window += number(&payload),
            WINDOW_UPDATE => self.stream_window += number(&payload),
            HEADERS => self.answered = true,
            RST_STREAM => return Some(Reset { no_error: number(&payload) == 0 }),
            GOAWAY => panic!("the connection is ended: {payload:?}"),
            _ => {}
        }
        None
    }
}

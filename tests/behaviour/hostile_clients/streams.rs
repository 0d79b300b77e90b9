//! Streams: WebSockets that break RFC 6455, and very many that are only there.

use mimid::wire::{client::OpenStream, encode};

use super::{
    device::{Device, Line},
    *,
};

/// A WebSocket by hand.
pub(super) struct Socket(Tls);

impl Socket {
    pub(super) fn open(node: &Node) -> Self {
        let mut tls = node.connect(node.client_address(), &[]);
        tls.write_all(
            b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            tls.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Self(tls)
    }

    /// One that is `device`'s.
    pub(super) fn of(node: &Node, device: &Device) -> Self {
        let mut socket = Self::open(node);
        let first = device.message("/v1/stream", &encode(&OpenStream { window: 65_536 }));
        socket.first(&first);
        socket
    }

    pub(super) fn first(&mut self, bytes: &[u8]) {
        self.0.write_all(&frame(0x82, bytes)).unwrap();
    }

    /// The code that it is closed with; none where it just ends.
    fn close_code(&mut self) -> Option<u16> {
        loop {
            let mut head = [0; 2];
            self.read(&mut head)?;
            let mut len = usize::from(head[1] & 0x7f);
            if len == 126 {
                let mut long = [0; 2];
                self.read(&mut long)?;
                len = usize::from(u16::from_be_bytes(long));
            }
            let mut payload = vec![0; len];
            self.read(&mut payload)?;
            if head[0] & 0xf == 8 {
                return payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Option<()> {
        self.0
            .read_exact(buffer)
            .map_err(|error| assert!(error.kind() != std::io::ErrorKind::WouldBlock, "it is open"))
            .ok()
    }
}

/// A frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | u8::try_from(len).unwrap()),
        len => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[test]
fn a_websocket_that_breaks_its_rules_is_closed() {
    let node = Node::start(&[("LIMITS__STREAM_OPEN_TIMEOUT", "1s")]);
    let device = Line::to(&node).devices("alice", 1).remove(0);
    let giant = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    let large = [&[0x82, 0xff][..], &(1u64 << 20).to_be_bytes(), &[0; 4]].concat();
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("without a mask", vec![0x82, 1, 7], &[4001]),
        ("larger than all memory", giant, &[1009]),
        ("larger than 4096", large, &[1009]),
        ("a fragment", frame(0x02, b"abc"), &[1003]),
        ("fragments without end", frame(0x00, b"abc").repeat(100), &[1003, 4001]),
        ("text", frame(0x81, b"abc"), &[1003]),
        ("an opcode that there is not", frame(0x83, b"abc"), &[1003, 4001]),
        ("bits that nobody agreed on", frame(0xf2, b"abc"), &[1003, 4001]),
        ("a long ping", frame(0x89, &[7; 126]), &[4001]),
        ("a ping in pieces", frame(0x09, b"a"), &[4001]),
        ("what is neither a message nor an acknowledgement", frame(0x82, b"abc"), &[4001, 4002]),
    ];
    for (name, bytes, codes) in cases {
        for mut socket in [Socket::open(&node), Socket::of(&node, &device)] {
            let _ = socket.0.write_all(&bytes);
            let code = socket.close_code();
            assert!(code.is_none_or(|code| codes.contains(&code)), "{name}: {code:?}");
        }
    }
    // who says nothing, and who says goodbye and stays
    assert_eq!(Socket::open(&node).close_code(), Some(4001));
    let mut leaving = Socket::of(&node, &device);
    leaving.0.write_all(&frame(0x88, &1000u16.to_be_bytes())).unwrap();
    leaving.close_code();
    node.until("none is open", |node| node.metric("mimid_streams_open") == 0);
    // over HTTP/2, and with less than a handshake
    let mut http2 = super::http2::Http2::connect(&node, node.client_address(), &[]);
    http2.post(1, "/v1/stream", b"");
    for headers in ["", "Upgrade: websocket\r\n", "Upgrade: websocket\r\nConnection: Upgrade\r\n"] {
        let said = node.said(
            node.client_address(),
            format!("GET /v1/stream HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: 0\r\nX: close\r\n\r\nGET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        );
        assert!(said.starts_with("HTTP/1.1 400"), "{headers}: {said}");
    }
}

#[test]
fn a_frame_that_says_that_it_is_large_is_not_waited_for() {
    let node = Node::start(&[]);
    let device = Line::to(&node).devices("mallory", 1).remove(0);
    let before = node.memory_kib("VmRSS");
    let mut socket = Socket::of(&node, &device);
    let _ = socket.0.write_all(&[&[0x82, 0xff][..], &(1u64 << 40).to_be_bytes(), &[0; 4]].concat());
    let part = vec![0; 1 << 20];
    let mut went = 0;
    while socket.0.write_all(&part).is_ok() {
        went += 1;
        assert!(went < 64, "{went} MiB of a frame were taken");
    }
    let grew = node.memory_kib("VmHWM").saturating_sub(before);
    assert!(grew < 32 << 10, "{grew} KiB for a frame that is refused");
}

#[test]
fn pings_without_end_of_one_that_does_not_read_end_its_stream() {
    let node = Node::start(&[("LIMITS__STREAM_STALL", "1s"), ("LIMITS__READ_TIMEOUT", "1s")]);
    let honest = Honest::start(&node);
    let device = Line::to(&node).devices("mallory", 1).remove(0);
    honest.speak_through("pings on a stream", || {
        let mut socket = Socket::of(&node, &device);
        let pings = frame(0x89, &[7; 125]).repeat(200);
        let mut went = 0;
        while socket.0.write_all(&pings).is_ok() {
            went += pings.len();
            assert!(went < 1 << 30);
        }
        println!("{went} bytes of pings taken");
    });
    node.until("none is open", |node| node.metric("mimid_streams_open") == 0);
}

#[test]
fn thousands_of_idle_streams_cost_little_and_hold_up_nobody() {
    // a descriptor at either end, and some for others
    let count = (500 * factor()).min(9_000);
    let waiting = (count + 100).to_string();
    let node = Node::start(&[
        ("LIMITS__STREAM_PING", "5s"),
        ("LIMITS__WAITING_MAX", &waiting),
        ("LIMITS__CONNECTIONS_MAX", "19000"),
    ]);
    let honest = Honest::start(&node);
    let devices = Line::to(&node).devices("idle", count);
    honest.times(20);
    let before = node.memory_kib("VmRSS");
    let open = honest.speak_through(&format!("{count} idle streams"), || {
        let open: Vec<_> = devices.iter().map(|device| Socket::of(&node, device)).collect();
        node.until("all are open", |node| node.metric("mimid_streams_open") == count as u64);
        open
    });
    let after = node.memory_kib("VmRSS");
    let each = (after.saturating_sub(before)) as f64 / count as f64;
    println!(
        "{count} idle streams: {before} KiB without, {after} KiB with them, {each:.1} KiB each"
    );
    assert!(each < 128.0, "{each} KiB for an idle stream");
    // whose pings nobody answers end by themselves, whatever their number
    node.until("they are let go", |node| node.metric("mimid_streams_open") == 0);
    assert_eq!(node.metric("mimid_stream_closes_total{reason=\"pings_unanswered\"}"), count as u64);
    drop(open);
    honest.times(5);
}

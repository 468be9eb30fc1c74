use http::HeaderValue;

use super::*;

const PROXY: &str = "10.0.0.1";

fn behind(header: Header) -> ClientIp {
    ClientIp::behind(["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], header)
}

fn found(finder: &ClientIp, peer: &str, lines: &[(&'static str, &[u8])]) -> String {
    let mut map = HeaderMap::new();
    for (name, line) in lines {
        map.append(*name, HeaderValue::from_bytes(line).unwrap());
    }
    finder.find(peer.parse().unwrap(), &map).to_string()
}

fn hops(hops: usize, xff: &str) -> String {
    found(
        &ClientIp::behind_hops(hops, Header::XForwardedFor),
        "198.51.100.9",
        &[("x-forwarded-for", xff.as_bytes())],
    )
}

/// Lines of one header, and the client found behind a proxy that writes this header. Text that a
/// stranger may have written is on the left.
#[test]
fn a_table_of_lists() {
    let xff: &[(&[&[u8]], &str)] = &[
        // A trusted proxy without a readable element is the client.
        (&[], PROXY),
        (&[b""], PROXY),
        (&[b" "], PROXY),
        (&[b","], PROXY),
        (&[b"unknown"], PROXY),
        (&[b"not an address"], PROXY),
        (&[b"203.0.113.7, garbage"], PROXY),
        (&[b"203.0.113.7, garbage, 10.0.0.2"], "10.0.0.2"),
        (&[b"203.0.113.7, \xff\xfe"], PROXY),
        // The list is read from the right.
        (&[b"203.0.113.7"], "203.0.113.7"),
        (&[b"1.1.1.1, 203.0.113.7"], "203.0.113.7"),
        (&[b"1.1.1.1,203.0.113.7,10.0.0.2"], "203.0.113.7"),
        (&[b"  203.0.113.7  ,  10.0.0.2 "], "203.0.113.7"),
        (&[b"203.0.113.7, 10.0.0.3, 10.0.0.2"], "203.0.113.7"),
        (&[b"10.0.0.9, 10.0.0.2"], "10.0.0.9"),
        // Elements that an attacker prepends or breaks do not help the attacker, and do not prevent
        // the others from being read.
        (&[b"127.0.0.1, 203.0.113.7"], "203.0.113.7"),
        (&[b"10.0.0.5, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (&[b"garbage, 203.0.113.7"], "203.0.113.7"),
        (&[b"\xff\xfe, 203.0.113.7"], "203.0.113.7"),
        (&["größe, 203.0.113.7".as_bytes()], "203.0.113.7"),
        (&[b"\"unclosed, 203.0.113.7"], "203.0.113.7"),
        (&[b"for=1.1.1.1;by=\", 203.0.113.7"], "203.0.113.7"),
        (&[b"\xff", b"203.0.113.7"], "203.0.113.7"),
        // Empty elements are ignored (RFC 9110, 5.6.1).
        (&[b"203.0.113.7, , 10.0.0.2"], "203.0.113.7"),
        (&[b"203.0.113.7,"], "203.0.113.7"),
        (&[b",,,203.0.113.7,,,"], "203.0.113.7"),
        (&[b"203.0.113.7", b""], "203.0.113.7"),
        // Several lines are one list.
        (&[b"1.1.1.1", b"203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (&[b"203.0.113.7", b"10.0.0.3", b"10.0.0.2"], "203.0.113.7"),
        // Ports and brackets.
        (&[b"203.0.113.7:4711"], "203.0.113.7"),
        (&[b"203.0.113.7:99999"], PROXY),
        (&[b"203.0.113.7:"], PROXY),
        (&[b"203.0.113.7:-1"], PROXY),
        (&[b"203.0.113.7:+1"], PROXY),
        (&[b"203.0.113.7:_hidden"], "203.0.113.7"),
        (&[b"203.0.113.7:_"], PROXY),
        (&[b"[2001:db8::7]:4711"], "2001:db8::7"),
        (&[b"[2001:db8::7]:_a.b-c"], "2001:db8::7"),
        (&[b"[2001:db8::7]"], "2001:db8::7"),
        (&[b"2001:db8::7"], "2001:db8::7"),
        (&[b"[2001:db8::7]x"], PROXY),
        (&[b"[203.0.113.7]"], PROXY),
        (&[b"[::1]:80:80"], PROXY),
        (&[b"::ffff:203.0.113.7"], "203.0.113.7"),
        (&[b"::ffff:10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        (&[b"::ffff:127.0.0.1"], "127.0.0.1"),
        (&[b"fd00::2, 203.0.113.7, fd00::3"], "203.0.113.7"),
        // Addresses are not guessed.
        (&[b"0x7f.0.0.1"], PROXY),
        (&[b"127.1"], PROXY),
        (&[b"0177.0.0.1"], PROXY),
        (&[b"203.0.113.7\t"], "203.0.113.7"),
        (&[b"203.0.113.7 10.0.0.2"], PROXY),
        (&[b"203.0.113.7;10.0.0.2"], PROXY),
        (&[b"fe80::1%eth0"], PROXY),
    ];
    let forwarded: &[(&[&[u8]], &str)] = &[
        (&[], PROXY),
        (&[b""], PROXY),
        (&[b"proto=https"], PROXY),
        (&[b"for=_hidden"], PROXY),
        (&[b"for=unknown"], PROXY),
        (&[b"for="], PROXY),
        (&[b"for"], PROXY),
        (&[b"for=203.0.113.7"], "203.0.113.7"),
        (&[b"For=203.0.113.7"], "203.0.113.7"),
        (&[b"FOR=203.0.113.7"], "203.0.113.7"),
        (&[b"proto=https;for=203.0.113.7;by=10.0.0.1"], "203.0.113.7"),
        (&[b"for=\"203.0.113.7:80\""], "203.0.113.7"),
        (&[b"for=\"203.0.113.7:_gazonk\""], "203.0.113.7"),
        (&[b"for=\"[2001:db8::7]:80\""], "2001:db8::7"),
        (&[b"for=\"[2001:db8::7]\""], "2001:db8::7"),
        (&[b"for=\"[2001:db8::7]:_x\""], "2001:db8::7"),
        (&[b"for=[2001:db8::7]"], "2001:db8::7"),
        (&[b"for=\"[2001:db8::7%eth0]\""], PROXY),
        (&[b"for=1.1.1.1, for=203.0.113.7"], "203.0.113.7"),
        (&[b"for=203.0.113.7, for=10.0.0.2"], "203.0.113.7"),
        (&[b"for=1.1.1.1", b"for=203.0.113.7"], "203.0.113.7"),
        (&[b"for=203.0.113.7;ext=\"a,b;for=1.1.1.1\", for=10.0.0.2"], "203.0.113.7"),
        (&[b"for=203.0.113.7;ext=\"a\\\",for=1.1.1.1\""], "203.0.113.7"),
        (&[b"for=1.1.1.1;by=\"\\\", for=203.0.113.7\""], "1.1.1.1"),
        (&[b"for=203.0.113.7;for=1.1.1.1"], "203.0.113.7"),
        (&[b"for = 203.0.113.7"], "203.0.113.7"),
        (&[b"for=\"203.0.113.7\"x"], PROXY),
        (&[b"for=\"unclosed"], PROXY),
        (&[b",,for=203.0.113.7"], "203.0.113.7"),
        (&[b"for=203.0.113.7,"], "203.0.113.7"),
        // A quote that a stranger leaves open does not swallow the proxy's element.
        (&[b"for=\"unclosed, for=203.0.113.7"], "203.0.113.7"),
        (&[b"for=1.1.1.1;ext=\"a, for=203.0.113.7;proto=http"], "203.0.113.7"),
        (&[b"for=\"1.1.1.1, for=\"203.0.113.7\";proto=http"], "203.0.113.7"),
        (&[b"\xff\xfe;for=1.1.1.1, for=203.0.113.7"], "203.0.113.7"),
        (&[b"for=\"unclosed", b"for=203.0.113.7"], "203.0.113.7"),
        (&[b", for=\"203.0.113.7\";proto=http"], "203.0.113.7"),
    ];
    for (header, name, table) in [
        (Header::XForwardedFor, "x-forwarded-for", xff),
        (Header::Forwarded, "forwarded", forwarded),
    ] {
        let finder = behind(header);
        for (lines, expected) in table {
            let lines: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
            let shown: Vec<_> =
                lines.iter().map(|(_, line)| String::from_utf8_lossy(line)).collect();
            assert_eq!(found(&finder, PROXY, &lines), *expected, "{name}: {shown:?}");
            // A stranger's header is ignored.
            for stranger in ["198.51.100.1", "2001:db8::1"] {
                assert_eq!(found(&finder, stranger, &lines), stranger, "{name}: {shown:?}");
            }
            // No other header is read.
            for other in [Header::XRealIp, Header::Custom("x-client".parse().unwrap())] {
                assert_eq!(found(&behind(other), PROXY, &lines), PROXY, "{name}: {shown:?}");
            }
            assert_eq!(found(&ClientIp::direct(), PROXY, &lines), PROXY, "{name}: {shown:?}");
        }
    }
    assert!(xff.len() + forwarded.len() >= 80);
}

/// A stranger writes all other headers; the proxy writes its own.
#[test]
fn one_header_is_read_and_no_other() {
    let all = [
        (Header::XForwardedFor, "x-forwarded-for", "203.0.113.7"),
        (Header::Forwarded, "forwarded", "for=203.0.113.7"),
        (Header::XRealIp, "x-real-ip", "203.0.113.7"),
        (Header::CfConnectingIp, "cf-connecting-ip", "203.0.113.7"),
        (Header::Custom(HeaderName::from_static("fly-client-ip")), "fly-client-ip", "203.0.113.7"),
    ];
    for (header, own, written) in &all {
        let mut lines: Vec<(&'static str, &[u8])> = Vec::new();
        for (_, name, _) in all.iter().filter(|(_, name, _)| name != own) {
            lines.push((*name, b"1.1.1.1"));
            lines.push((*name, b"for=1.1.1.1"));
        }
        assert_eq!(
            found(&behind(header.clone()), PROXY, &lines),
            PROXY,
            "{own}: the proxy says nothing"
        );
        lines.push((*own, written.as_bytes()));
        assert_eq!(found(&behind(header.clone()), PROXY, &lines), "203.0.113.7", "{own}");
        assert_eq!(
            found(&behind(header.clone()), "198.51.100.1", &lines),
            "198.51.100.1",
            "{own}: from a stranger"
        );
    }
    for (line, expected) in [
        ("", PROXY),
        ("nonsense", PROXY),
        ("1.1.1.1, 203.0.113.7", PROXY),
        ("[2001:db8::7]:80", "2001:db8::7"),
    ] {
        assert_eq!(
            found(&behind(Header::XRealIp), PROXY, &[("x-real-ip", line.as_bytes())]),
            expected,
            "{line}"
        );
    }
    // Of two lines the last one is the proxy's.
    let twice: [(&'static str, &[u8]); 2] =
        [("x-real-ip", b"1.1.1.1"), ("x-real-ip", b"203.0.113.7")];
    assert_eq!(found(&behind(Header::XRealIp), PROXY, &twice), "203.0.113.7");
}

#[test]
fn proxies_are_counted_where_they_have_no_addresses() {
    assert_eq!(hops(0, "1.1.1.1, 203.0.113.7"), "198.51.100.9");
    assert_eq!(hops(1, "1.1.1.1, 203.0.113.7"), "203.0.113.7");
    assert_eq!(hops(2, "1.1.1.1, 203.0.113.7, 192.0.2.1"), "203.0.113.7");
    assert_eq!(hops(2, "203.0.113.7"), "203.0.113.7");
    assert_eq!(hops(1, ""), "198.51.100.9");
    let real = |hops| {
        found(
            &ClientIp::behind_hops(hops, Header::XRealIp),
            "198.51.100.9",
            &[("x-real-ip", b"203.0.113.7")],
        )
    };
    assert_eq!((real(0).as_str(), real(1).as_str()), ("198.51.100.9", "203.0.113.7"));
}

#[test]
fn a_long_list_is_read_no_further_than_it_may_be_believed() {
    let endless = vec!["10.0.0.2"; 10_000].join(",");
    assert_eq!(
        found(&behind(Header::XForwardedFor), PROXY, &[("x-forwarded-for", endless.as_bytes())]),
        "10.0.0.2"
    );
    for one in [
        "9".repeat(100_000),
        "\"".repeat(100_000),
        "\\".repeat(100_000),
        format!("\"{}\"", "\\".repeat(100_000)),
    ] {
        for header in [Header::XForwardedFor, Header::Forwarded, Header::XRealIp] {
            for name in ["x-forwarded-for", "forwarded", "x-real-ip"] {
                assert_eq!(found(&behind(header.clone()), PROXY, &[(name, one.as_bytes())]), PROXY);
            }
        }
    }
}

#[test]
fn settings_name_the_header() {
    let read = |text: &str| serde_json::from_str::<ClientIp>(text).map_err(|e| e.to_string());
    assert!(read("{}").is_ok());
    assert!(read("{\"trusted\":[\"10.0.0.0/8\"]}").unwrap_err().contains("`header` is missing"));
    let finder = read("{\"trusted\":[\"10.0.0.0/8\"],\"header\":\"X-Forwarded-For\"}").unwrap();
    assert_eq!(found(&finder, PROXY, &[("x-forwarded-for", b"203.0.113.7")]), "203.0.113.7");
    assert!(
        read("{\"trusted\":[\"10.0.0.0/8\"],\"header\":\"two words\"}")
            .unwrap_err()
            .contains("two words")
    );
}

#[test]
fn ipv6_is_limited_by_prefix() {
    assert_eq!(&*prefix("2001:db8:1:2:3:4:5:6".parse().unwrap()), "2001:db8:1:2::/64");
    for v4 in ["1.2.3.4", "0.0.0.0", "255.255.255.255", "203.0.113.10"] {
        assert_eq!(&*prefix(format!("::ffff:{v4}").parse().unwrap()), v4);
    }
}

#[test]
fn an_ipv4_address_is_one_client_however_it_is_written_in_ipv6() {
    for (written, key) in [
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("64:ff9b::203.0.113.7", "203.0.113.7"),
        ("64:ff9b:1::203.0.113.7", "203.0.113.7"),
        ("64:ff9b:1:ffff::203.0.113.7", "203.0.113.7"),
        ("2002:cb00:7107::1", "203.0.113.7"),
        ("2002:cb00:7107:ffff:1:2:3:4", "203.0.113.7"),
        ("2001:0:4136:e378:8000:63bf:34ff:8ef8", "203.0.113.7"),
        ("2001:0:1:2:3:4:34ff:8ef8", "203.0.113.7"),
        ("2001:1::203.0.113.7", "2001:1::/64"),
        ("64:ff9b:2::203.0.113.7", "64:ff9b:2::/64"),
        ("2003:cb00:7107::1", "2003:cb00:7107::/64"),
    ] {
        assert_eq!(&*prefix(written.parse().unwrap()), key, "{written}");
    }
}

#[test]
fn the_length_of_prefixes_is_chosen() {
    let request = |address: &str| {
        let mut request = http::Request::new(());
        request.extensions_mut().insert(Peer(SocketAddr::new(address.parse().unwrap(), 1)));
        request
    };
    for (bits, key) in [
        (128, "2001:db8:1:2ff:3:4:5:6/128"),
        (64, "2001:db8:1:2ff::/64"),
        (56, "2001:db8:1:200::/56"),
        (48, "2001:db8:1::/48"),
        (0, "2001:db8::/32"),
    ] {
        let clients = ClientIp::direct().ipv6_prefix(bits);
        assert_eq!(&*clients.key(&request("2001:db8:1:2ff:3:4:5:6")).unwrap(), key);
        assert_eq!(&*clients.key(&request("203.0.113.7")).unwrap(), "203.0.113.7");
    }
    let read =
        |text: &str| serde_json::from_str::<ClientIp>(text).map_err(|error| error.to_string());
    assert_eq!(read(r#"{"ipv6_prefix": 56}"#).unwrap().prefix, Prefix(56));
    assert!(read(r#"{"ipv6_prefix": 200}"#).unwrap_err().contains("32 to 128"));
}

proptest::proptest! {
    #[test]
    fn any_header_is_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
            for (name, header) in [
                ("forwarded", Header::Forwarded),
                ("x-forwarded-for", Header::XForwardedFor),
                ("x-real-ip", Header::XRealIp),
            ] {
                let mut map = HeaderMap::new();
                map.insert(name, value.clone());
                behind(header).find(PROXY.parse().unwrap(), &map);
            }
        }
    }
}

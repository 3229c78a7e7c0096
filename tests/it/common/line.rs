//! A line to a server that can be cut, in the ways in which lines are cut.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// What the line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It carries everything.
    Up,
    /// Connections are reset: the server is gone.
    Down,
    /// Everything is swallowed, as by a firewall.
    Black,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    open: Mutex<Vec<TcpStream>>,
    /// Connections of an earlier generation are swallowed for good.
    generation: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn state(&self) -> State {
        *self.state.lock().unwrap()
    }
}

/// A TCP proxy on loopback.
pub struct Line {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Line {
    /// A line to `server`, `http://host:port`.
    pub fn to(server: &str) -> Self {
        let server: SocketAddr = server.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Up),
            open: Mutex::default(),
            generation: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let line = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if line.stop.load(Ordering::SeqCst) {
                    return;
                }
                if line.state() != State::Down {
                    line.open.lock().unwrap().push(stream.try_clone().unwrap());
                    carry(stream, server, &line);
                }
            }
        });
        Self { shared, address }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Swallows what comes over connections that are open now, and carries new ones: as after a change of address.
    pub fn forget(&self) {
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// What it does from now on, also to connections that are open.
    pub fn set(&self, state: State) {
        *self.shared.state.lock().unwrap() = state;
        if state == State::Down {
            for stream in self.shared.open.lock().unwrap().drain(..) {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.set(State::Down);
        let _ = TcpStream::connect(self.address);
    }
}

/// Carries one connection in both directions.
fn carry(client: TcpStream, server: SocketAddr, line: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(server) else { return };
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let line = Arc::clone(line);
        let generation = line.generation.load(Ordering::SeqCst);
        thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                while line.state() == State::Black || line.generation.load(Ordering::SeqCst) != generation {
                    if line.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

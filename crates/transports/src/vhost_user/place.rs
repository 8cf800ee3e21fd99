//! Where the socket is: a path to listen at or to connect to, or a descriptor somebody gave us.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use sys::{Connection, Listener, connect_unix, inherited_fd, is_listening, listen_unix};
use virtio::{ParameterError, Parameters};

const AMBIGUOUS: &str = "give one of path=, listen=, connect= and fd=, not several";

/// How a connection comes about.
#[derive(Debug)]
pub(super) enum Place {
    /// The peer connects.
    Listen(Listener, String),
    /// We connect, again and again if need be.
    Connect(PathBuf),
    /// It is connected; there is no second one.
    Given(Option<Connection>),
}

/// Which way round a bare `path=` is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BarePath {
    Listen,
    Connect,
}

impl Place {
    /// From `path=`, `listen=`, `connect=` or `fd=`.
    pub(super) fn from_parameters(
        parameters: &mut Parameters,
        bare: BarePath,
    ) -> Result<Self, PlaceError> {
        let path = parameters.path("path");
        let mut listen = parameters.path("listen");
        let mut connect = parameters.path("connect");
        let fd = parameters.number("fd", 3..=i32::MAX as u64)?;
        match bare {
            BarePath::Listen => listen = listen.or(path),
            BarePath::Connect => connect = connect.or(path),
        }
        match (listen, connect, fd) {
            (Some(path), None, None) => Self::listen(path),
            (None, Some(path), None) => Ok(Self::Connect(path)),
            (None, None, Some(number)) => Self::given(number as i32),
            (None, None, None) => Err(ParameterError::Missing("path").into()),
            _ => Err(ParameterError::Together(AMBIGUOUS).into()),
        }
    }

    pub(super) fn listen(path: PathBuf) -> Result<Self, PlaceError> {
        let name = path.display().to_string();
        match listen_unix(&path) {
            Ok(listener) => Ok(Self::Listen(listener, name)),
            Err(source) => Err(PlaceError::System(format!("listening at {name}"), source)),
        }
    }

    fn given(number: i32) -> Result<Self, PlaceError> {
        let attempt = |what: &str| format!("{what} descriptor {number}");
        let fd: OwnedFd = inherited_fd(number)
            .map_err(|source| PlaceError::System(attempt("taking over"), source))?;
        let failed = |source| PlaceError::System(attempt("using"), source);
        if is_listening(&fd) {
            let listener = Listener::from_fd(fd).map_err(failed)?;
            let name = listener.path().map(|path| path.display().to_string());
            Ok(Self::Listen(listener, name.unwrap_or_else(|| format!("fd {number}"))))
        } else {
            Ok(Self::Given(Some(Connection::new(fd).map_err(failed)?)))
        }
    }

    /// The connection, if there is one to be had now.
    pub(super) fn try_connection(&mut self) -> io::Result<Option<Connection>> {
        match self {
            Self::Listen(listener, _) => listener.accept(),
            Self::Connect(path) => match connect_unix(path) {
                Ok(connection) => Ok(Some(connection)),
                Err(error) if is_absence(&error) => Ok(None),
                Err(error) => Err(error),
            },
            Self::Given(connection) => Ok(connection.take()),
        }
    }
}

/// Nobody listens there at the moment.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    matches!(error.kind(), ConnectionRefused | NotFound | WouldBlock)
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listen(_, name) => f.write_str(name),
            Self::Connect(path) => write!(f, "{}", path.display()),
            Self::Given(_) => f.write_str("the given descriptor"),
        }
    }
}

/// Why there can't be a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("{0}: {1}")]
    System(String, #[source] io::Error),
}

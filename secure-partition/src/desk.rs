//! Where sessions meet: the memory that they share, and the request that one of them is to answer.
//!
//! A session is a future, as what answers a prompt borrows from the session's own memory and lives across requests. It is resumed
//! when there is something for it, and never wakes by itself.

use crate::{
    memory::Borrow,
    reply::{Args, Reply, failure},
    service::Resources,
    session::Session,
    weights::Place,
};
use core::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
};
use flexserve_abi::service::{Op, SESSIONS, Status};

/// What a session is resumed with.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A request for it. `OPEN` if it is not open.
    Request(Op, Args),
    /// The weights in this place are about to be given up: it may compute with them no more.
    LetGo(usize),
}

/// What all sessions use.
pub struct Desk<'a, B: Borrow> {
    borrower: RefCell<&'a mut B>,
    pub places: [Place<B>; SESSIONS],
    pub own: Resources<'a>,
    /// Numbers of the sessions by seat, 0 where none is open.
    sessions: [Cell<u64>; SESSIONS],
    /// Sessions that were ever opened.
    opened: Cell<u64>,
    event: Cell<Option<Event>>,
    reply: Cell<Option<Reply>>,
    /// Weights that the session which answers a request must have to itself before it goes on.
    wanted: Cell<Option<usize>>,
}

impl<'a, B: Borrow> Desk<'a, B> {
    pub fn new(borrower: &'a mut B, own: Resources<'a>) -> Self {
        Self {
            borrower: RefCell::new(borrower),
            places: [const { Place::new() }; SESSIONS],
            own,
            sessions: [const { Cell::new(0) }; SESSIONS],
            opened: Cell::new(0),
            event: Cell::new(None),
            reply: Cell::new(None),
            wanted: Cell::new(None),
        }
    }

    /// Borrows or gives up memory.
    pub fn borrowing<R>(&self, act: impl FnOnce(&mut B) -> R) -> R {
        act(*self.borrower.borrow_mut())
    }

    /// What comes next for the session that asks.
    pub async fn event(&self) -> Event {
        poll_fn(|_| self.event.take().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Answers the request.
    pub fn answer(&self, reply: Reply) {
        self.reply.set(Some(reply));
    }

    /// Waits until no other session computes with the weights in a place.
    pub async fn alone_with(&self, place: usize) {
        let mut asked = false;
        poll_fn(|_| {
            if asked {
                return Poll::Ready(());
            }
            asked = true;
            self.wanted.set(Some(place));
            Poll::Pending
        })
        .await;
    }

    /// The seat of a session, or a free one if the request opens a session.
    fn seat(&self, op: Op, args: &Args) -> Result<usize, Status> {
        let (number, none) = match op {
            Op::Open => (0, Status::Busy),
            _ if args[0] == 0 => return Err(Status::NoSession),
            _ => (args[0], Status::NoSession),
        };
        self.sessions.iter().position(|session| session.get() == number).ok_or(none)
    }

    /// Has a session answer a request.
    pub fn ask(&self, seats: &mut [Pin<&mut impl Future>], op: Op, args: Args) -> Reply {
        let at = match self.seat(op, &args) {
            Ok(at) => at,
            Err(status) => return failure(status),
        };
        self.resume(&mut seats[at], Some(Event::Request(op, args)));
        while let Some(place) = self.wanted.take() {
            for other in (0..seats.len()).filter(|other| *other != at) {
                self.resume(&mut seats[other], Some(Event::LetGo(place)));
            }
            self.resume(&mut seats[at], None);
        }
        self.reply.take().unwrap_or(failure(Status::WrongState))
    }

    fn resume(&self, session: &mut Pin<&mut impl Future>, event: Option<Event>) {
        self.event.set(event);
        // It never ends: what comes back is that it waits.
        let _ = session.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// A seat for one session after the other.
pub async fn sit<B: Borrow>(desk: &Desk<'_, B>, seat: usize) {
    loop {
        let Event::Request(_, args) = desk.event().await else { continue };
        // Never 0.
        let number = desk.opened.get() + 1;
        let opened = desk.borrowing(|borrower| Session::open(number, &args, borrower));
        match opened {
            Ok((session, reply)) => {
                desk.opened.set(number);
                desk.sessions[seat].set(number);
                desk.answer(reply);
                session.serve(desk).await;
                desk.sessions[seat].set(0);
            }
            Err(status) => desk.answer(failure(status)),
        }
    }
}

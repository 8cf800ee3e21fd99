use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::mpsc::{Sender, sync_channel};

use sys::EventFd;

use crate::Task;

/// Something to do on a task in its worker's thread.
pub(crate) type Work = Box<dyn FnOnce(&mut dyn Task) + Send>;

/// What the control plane asks of a worker.
pub(crate) enum Command {
    /// Own this task under this id.
    Start(u64, Box<dyn Task>),
    /// Run this on the task, then look at its descriptors afresh and poll it.
    Call(u64, Work),
    /// Poll the task.
    Wake(u64),
    /// Give the task back.
    Stop(u64, Sender<Box<dyn Task>>),
    /// End the thread.
    Quit,
}

/// A worker's mailbox: a channel and the event that wakes the thread.
#[derive(Clone)]
pub(crate) struct Mailbox {
    pub(crate) commands: Sender<Command>,
    pub(crate) wake: Arc<EventFd>,
}

impl Mailbox {
    /// Sends a command; returns false if the thread is gone.
    pub(crate) fn send(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.wake.signal();
        sent
    }
}

/// The control plane's hold on a running task. Dropping it stops the task and drops it in turn.
pub struct TaskHandle<T: Task> {
    id: u64,
    mailbox: Option<Mailbox>,
    _task: PhantomData<fn() -> T>,
}

impl<T: Task> TaskHandle<T> {
    pub(crate) fn new(id: u64, mailbox: Mailbox) -> Self {
        Self { id, mailbox: Some(mailbox), _task: PhantomData }
    }

    /// Runs `work` on the task in its worker's thread, between two polls, and waits for the result;
    /// `None` if the worker is gone. Afterwards the task's descriptors are looked at afresh and it
    /// is polled at least once.
    pub fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Option<R> {
        let (send, receive) = sync_channel(1);
        let work = move |task: &mut dyn Task| {
            let task: &mut dyn Any = task;
            if let Some(task) = task.downcast_mut::<T>() {
                let _ = send.send(work(task));
            }
        };
        self.mailbox.as_ref()?.send(Command::Call(self.id, Box::new(work)));
        receive.recv().ok()
    }

    /// As [`TaskHandle::call`] without waiting.
    pub fn post(&self, work: impl FnOnce(&mut T) + Send + 'static) {
        let work = move |task: &mut dyn Task| {
            let task: &mut dyn Any = task;
            if let Some(task) = task.downcast_mut::<T>() {
                work(task);
            }
        };
        if let Some(mailbox) = &self.mailbox {
            mailbox.send(Command::Call(self.id, Box::new(work)));
        }
    }

    /// Has the task polled at least once, without waiting for that.
    pub fn wake(&self) {
        if let Some(mailbox) = &self.mailbox {
            mailbox.send(Command::Wake(self.id));
        }
    }

    /// Takes the task back; it is not polled any more. `None` if the worker's thread died.
    #[must_use]
    pub fn stop(mut self) -> Option<T> {
        let task: Box<dyn Any> = self.take()?;
        task.downcast::<T>().ok().map(|task| *task)
    }

    fn take(&mut self) -> Option<Box<dyn Task>> {
        let (send, receive) = std::sync::mpsc::channel();
        self.mailbox.take()?.send(Command::Stop(self.id, send));
        receive.recv().ok()
    }
}

impl<T: Task> Drop for TaskHandle<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<T: Task> std::fmt::Debug for TaskHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskHandle({})", self.id)
    }
}

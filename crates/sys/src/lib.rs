//! The operating system: eventfds, memfds, sockets that carry file descriptors, epoll, ioctls.

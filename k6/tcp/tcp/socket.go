// Package tcp is the k6 module `k6/x/tcp`: plain TCP sockets for scripts, driven by events. Its names are those of the
// official extension (xk6-tcp) as far as our scripts use them, so that they run with either:
//
//	socket.on('connect' | 'data' | 'error' | 'close', handler)
//	await socket.connect(port, host)
//	await socket.write(stringOrArrayBuffer)
//	socket.destroy()
//
// Threads: everything of sobek is touched on the event loop of the VU only. One goroutine per socket reads and hands
// what it read to the loop; a write blocks in a goroutine of its own, one after another.
package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/grafana/sobek"
	"github.com/mstoykov/k6-taskqueue-lib/taskqueue"
	"go.k6.io/k6/js/modules"
	"go.k6.io/k6/js/promises"
)

func init() {
	modules.Register("k6/x/tcp", new(module))
}

type module struct{}

type instance struct {
	vu modules.VU
}

func (*module) NewModuleInstance(vu modules.VU) modules.Instance {
	return &instance{vu: vu}
}

func (i *instance) Exports() modules.Exports {
	exports := map[string]any{"Socket": i.newSocket}
	return modules.Exports{Default: exports, Named: exports}
}

// Bytes of one read; a larger chunk comes as several events, as on any stream.
const readBytesMax = 65536

type socket struct {
	vu       modules.VU
	handlers map[string][]sobek.Callable
	tasks    *taskqueue.TaskQueue

	// of the goroutines too
	mutex sync.Mutex
	conn  net.Conn
	// closed by destroy, or by the end of the iteration
	isDestroyed bool
	// one write at a time, in the order in which they were asked for
	writes chan write
}

type write struct {
	bytes   []byte
	resolve func(any)
	reject  func(any)
}

var errDestroyed = errors.New("the socket was destroyed")

func (i *instance) newSocket(_ sobek.ConstructorCall) *sobek.Object {
	runtime := i.vu.Runtime()
	if i.vu.State() == nil {
		panic(runtime.NewTypeError("sockets are made by VUs, not in the init part of a script"))
	}
	s := &socket{vu: i.vu, handlers: map[string][]sobek.Callable{}}
	object := runtime.NewObject()
	for name, method := range map[string]any{"on": s.on, "connect": s.connect, "write": s.write, "destroy": s.destroy} {
		if err := object.Set(name, method); err != nil {
			panic(runtime.NewGoError(err))
		}
	}
	return object
}

func (s *socket) on(event string, handler sobek.Callable) {
	s.handlers[event] = append(s.handlers[event], handler)
}

// emit runs on the event loop.
func (s *socket) emit(event string, values ...sobek.Value) error {
	for _, handler := range s.handlers[event] {
		if _, err := handler(sobek.Undefined(), values...); err != nil {
			return err
		}
	}
	return nil
}

func (s *socket) connect(port int, host string) *sobek.Promise {
	promise, resolve, reject := promises.New(s.vu)
	if s.tasks != nil {
		reject(errors.New("a socket connects once"))
		return promise
	}
	s.tasks = taskqueue.New(s.vu.RegisterCallback)
	ctx := s.vu.Context()
	dialer := s.vu.State().Dialer
	go func() {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			s.fail(err)
			s.end()
			reject(err)
			return
		}
		s.mutex.Lock()
		isDestroyed := s.isDestroyed
		s.conn = conn
		s.writes = make(chan write, 1024)
		s.mutex.Unlock()
		if isDestroyed {
			_ = conn.Close()
			s.end()
			reject(errDestroyed)
			return
		}
		gone := make(chan struct{})
		go s.closeWith(ctx, gone)
		go s.writeAll(gone)
		resolve(sobek.Undefined())
		s.tasks.Queue(func() error { return s.emit("connect") })
		s.readAll(conn)
		close(gone)
	}()
	return promise
}

// closeWith ends the connection with the VU's context, or readers would outlive the test.
func (s *socket) closeWith(ctx context.Context, gone <-chan struct{}) {
	select {
	case <-ctx.Done():
		s.destroy()
	case <-gone:
	}
}

func (s *socket) readAll(conn net.Conn) {
	buffer := make([]byte, readBytesMax)
	for {
		count, err := conn.Read(buffer)
		if count > 0 {
			bytes := make([]byte, count)
			copy(bytes, buffer)
			s.tasks.Queue(func() error {
				runtime := s.vu.Runtime()
				return s.emit("data", runtime.ToValue(runtime.NewArrayBuffer(bytes)))
			})
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.fail(err)
			}
			break
		}
	}
	_ = conn.Close()
	s.end()
}

func (s *socket) writeAll(gone <-chan struct{}) {
	for {
		select {
		case next := <-s.writes:
			if _, err := s.conn.Write(next.bytes); err != nil {
				next.reject(err)
			} else {
				next.resolve(sobek.Undefined())
			}
		case <-gone:
			// what still waits is answered: a promise nobody settles would hold the iteration for ever
			for {
				select {
				case next := <-s.writes:
					next.reject(net.ErrClosed)
				default:
					return
				}
			}
		}
	}
}

func (s *socket) write(data sobek.Value) *sobek.Promise {
	promise, resolve, reject := promises.New(s.vu)
	bytes, err := bytesOf(data)
	if err != nil {
		reject(err)
		return promise
	}
	s.mutex.Lock()
	writes := s.writes
	isOpen := s.conn != nil && !s.isDestroyed
	s.mutex.Unlock()
	if !isOpen {
		reject(net.ErrClosed)
		return promise
	}
	select {
	case writes <- write{bytes, resolve, reject}:
	default:
		reject(errors.New("1024 writes are waiting already"))
	}
	return promise
}

// destroy may be called from the loop and from a goroutine, any number of times.
func (s *socket) destroy() {
	s.mutex.Lock()
	s.isDestroyed = true
	conn := s.conn
	s.mutex.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
}

func (s *socket) fail(err error) {
	s.tasks.Queue(func() error { return s.emit("error", s.vu.Runtime().NewGoError(err)) })
}

// end is the last word of a socket: the loop is free to finish behind it.
func (s *socket) end() {
	s.mutex.Lock()
	s.isDestroyed = true
	s.mutex.Unlock()
	s.tasks.Queue(func() error {
		defer s.tasks.Close()
		return s.emit("close")
	})
}

func bytesOf(value sobek.Value) ([]byte, error) {
	switch data := value.Export().(type) {
	case string:
		return []byte(data), nil
	case sobek.ArrayBuffer:
		return append([]byte(nil), data.Bytes()...), nil
	case []byte:
		return append([]byte(nil), data...), nil
	default:
		return nil, fmt.Errorf("write takes a string or an ArrayBuffer, not %T", data)
	}
}

//go:build linux

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideVariable tells a process that it is the one inside.
const insideVariable = "UNDERSTUDY_CHAOS_INSIDE"

// Inside reports whether this process was started by Enter.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Enter runs this program again in network and mount namespaces of its own (and a user namespace
// unless it is root), and waits for it. Whatever is made inside, namespaces, bridge and links,
// lives no longer than the last process in it, so that nothing is left even if this program is
// killed. args replace its own arguments.
func Enter(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = namespaces()
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	runtime.LockOSThread() // the signal comes when the thread ends
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return err
	}
	forwarded := make(chan struct{})
	go func() {
		defer close(forwarded)
		for s := range signals {
			_ = cmd.Process.Signal(s) // it fails only when the process has ended
		}
	}()
	err = cmd.Wait()
	signal.Stop(signals)
	close(signals)
	<-forwarded
	return err
}

// namespaces are those that a process is started in.
func namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if os.Getuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// A lab is a network of hosts, each a network namespace on one bridge. What one host sends to
// another is cut by sending it to a hardware address that nobody has: it is lost without a word,
// one way, on connections that there are and on new ones, as with a DROP rule, and the kernel needs
// no packet filter for it.
type lab struct {
	hosts []string
	cut   map[pair]bool
}

// pair is a direction: what from sends to is meant.
type pair struct{ from, to string }

// newLab makes the network. The process must be inside.
func newLab(hosts ...string) (*lab, error) {
	// Mounts must not show outside. ip keeps its names for namespaces in /run/netns.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("chaos: make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("chaos: mount /run: %w", err)
	}
	l := &lab{hosts: hosts, cut: map[pair]bool{}}
	outside := []string{
		"link set lo up",
		"link add bridge type bridge",
		"addr add 10.0.0.1/24 dev bridge",
		"link set bridge up",
	}
	for _, h := range hosts {
		outside = append(outside,
			"netns add "+h,
			fmt.Sprintf("link add to-%s type veth peer name eth0 address %s netns %s", h, l.mac(h), h),
			fmt.Sprintf("link set to-%s master bridge up", h))
	}
	if err := ip("", outside); err != nil {
		return nil, err
	}
	for _, h := range hosts {
		inside := []string{"link set lo up", "addr add " + l.addr(h) + "/24 dev eth0", "link set eth0 up"}
		for _, other := range hosts {
			if other != h {
				inside = append(inside, l.neighbour(h, other))
			}
		}
		if err := ip(h, inside); err != nil {
			return nil, err
		}
	}
	return l, poll(context.Background(), recovery, l.up)
}

// up says why the bridge doesn't reach every host yet: the kernel notices later that links have a
// carrier.
func (l *lab) up() error {
	out, err := exec.Command("ip", "-brief", "link", "show", "master", "bridge").Output()
	if err != nil {
		return fmt.Errorf("chaos: ip: %w", err)
	}
	up := 0
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "UP" {
			up++
		}
	}
	if up != len(l.hosts) {
		return fmt.Errorf("chaos: %d links are up, not %d:\n%s", up, len(l.hosts), out)
	}
	return nil
}

func (l *lab) String() string {
	return fmt.Sprintf("%d network namespaces on a bridge", len(l.hosts))
}

func (l *lab) number(host string) int  { return slices.Index(l.hosts, host) + 10 }
func (l *lab) addr(host string) string { return fmt.Sprintf("10.0.0.%d", l.number(host)) }
func (l *lab) mac(host string) string  { return fmt.Sprintf("02:00:00:00:00:%02x", l.number(host)) }
func (l *lab) on(host string) []string { return []string{"ip", "netns", "exec", host} }

func (l *lab) via(string) string { return "" }
func (l *lab) close() error      { return nil } // the kernel does it

// neighbour is the entry by which from reaches to, or doesn't.
func (l *lab) neighbour(from, to string) string {
	mac := l.mac(to)
	if l.cut[pair{from, to}] {
		mac = "02:00:00:00:ff:ff"
	}
	return fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev eth0", l.addr(to), mac)
}

// drop loses what is sent in these directions, until heal.
func (l *lab) drop(pairs []pair) error {
	for _, p := range pairs {
		l.cut[p] = true
	}
	return l.apply(pairs)
}

// heal lets everything through again.
func (l *lab) heal() error {
	var pairs []pair
	for p := range l.cut {
		pairs = append(pairs, p)
	}
	clear(l.cut)
	return l.apply(pairs)
}

func (l *lab) apply(pairs []pair) error {
	entries := map[string][]string{}
	for _, p := range pairs {
		entries[p.from] = append(entries[p.from], l.neighbour(p.from, p.to))
	}
	for from, e := range entries {
		if err := ip(from, e); err != nil {
			return err
		}
	}
	return nil
}

// reset resets every connection between two hosts, at both ends.
func (l *lab) reset(a, b string) error {
	out, err := exec.Command("ip", "netns", "exec", a, "ss", "-K", "-H", "-t", "dst", l.addr(b)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("chaos: ss: %w: %s", err, out)
	}
	return nil
}

// ip runs commands of ip, in a host's namespace unless that is "".
func ip(host string, commands []string) error {
	args := []string{"-batch", "-"}
	if host != "" {
		args = append([]string{"-n", host}, args...)
	}
	cmd := exec.Command("ip", args...)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("chaos: ip: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Possible says why namespaces can't be used here, or nil.
func Possible() error {
	for _, tool := range []string{"ip", "ss"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("chaos: %w (of iproute2)", err)
		}
	}
	truth, err := exec.LookPath("true")
	if err != nil {
		return err
	}
	probe := exec.Command(truth)
	probe.SysProcAttr = namespaces()
	if err := probe.Run(); err != nil {
		return errors.Join(errors.New("chaos: this machine allows no network namespaces"), err)
	}
	return nil
}

package process

import (
	"os/exec"
	"syscall"
)

// dieWithStarter makes a process die when the thread that starts it does, even if it is stopped. It
// has a group of its own: what is typed at the terminal is meant for who started it.
func dieWithStarter(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

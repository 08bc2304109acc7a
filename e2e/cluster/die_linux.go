package cluster

import (
	"os/exec"
	"syscall"
)

// dieWithTest makes a process die when the thread that starts it does, even if it is stopped.
func dieWithTest(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

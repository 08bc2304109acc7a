package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// build returns the path of cmd/journal's binary, built once for a test process, in a directory
// that Clean removes.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "understudy-e2e-")
	if err != nil {
		return "", err
	}
	built = dir
	binary := filepath.Join(dir, "journal")
	args := []string{"build", "-o", binary}
	if race {
		args = append(args, "-race")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go",
		append(args, "github.com/understudy-rpc/understudy/e2e/cmd/journal")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build cmd/journal: %w\n%s", err, out)
	}
	return binary, nil
})

var built string // the directory; set by build

// Clean removes what was built, after all tests.
func Clean() { _ = os.RemoveAll(built) } // what stays behind is in the system's temporary directory

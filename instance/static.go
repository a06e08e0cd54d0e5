package instance

import (
	"context"
	"strings"
	"time"
)

// retryMove is how long a static tunnel waits before it tries again to move.
const retryMove = 5 * time.Second

// A static tunnel has nobody to authenticate to; it only follows its ends.
type static struct{ *mover }

func (s *static) run(ctx context.Context) error {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.again:
		case <-retry:
		}
		retry = nil
		s.mu.Lock()
		err := s.follow()
		var gone error
		if err != nil {
			gone = s.gone(s.in.anew()) // also if that was only while it moved
		}
		s.mu.Unlock()
		switch {
		case gone != nil: // that it is back will be noticed
			s.in.Log.Warn(s.tunnel.Dev + ": not moved yet: " + gone.Error())
		case err != nil:
			s.in.Log.Error(s.tunnel.Dev + ": moving the tunnel: " + strings.ReplaceAll(err.Error(), "\n", "; "))
			retry = time.After(retryMove)
		}
	}
}

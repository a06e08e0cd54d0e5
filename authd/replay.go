package authd

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// maxSalts is how many authentications of one key and one second are accepted.
const maxSalts = 64

// ReplayState is what is remembered of a key to know its payloads again. The
// zero value has accepted nothing.
type ReplayState struct {
	Time  int64     // Unix seconds of the newest accepted payload
	Salts [][4]byte // of those accepted with that time, at most 64
}

// check returns ErrOlder, ErrReplayed or ErrRate for a stamp that must not be
// accepted. The payload may still be forged: only accept changes the state.
func (s ReplayState) check(st Stamp) error {
	switch {
	case st.Time < s.Time:
		return olderError(s.Time - st.Time)
	case st.Time > s.Time:
		return nil
	case slices.Contains(s.Salts, st.Salt):
		return ErrReplayed
	case len(s.Salts) >= maxSalts:
		return errSalts
	}
	return nil
}

var errSalts = fmt.Errorf("%w: more than %d of one second", ErrRate, maxSalts)

// olderError is by how many seconds a payload is too old. It is text only when
// logged, as skewError is.
type olderError int64

func (e olderError) Error() string {
	return fmt.Sprintf("%v, by %d s: sent again by somebody, or the sender's clock was set back: then set it right, "+
		"or wait so long, or stop the server, remove the key's file in its state directory and start it again", ErrOlder, int64(e))
}

func (olderError) Unwrap() error { return ErrOlder }

// accept remembers a stamp that check passed and whose signature is good.
func (s *ReplayState) accept(st Stamp) {
	if st.Time > s.Time {
		*s = ReplayState{Time: st.Time}
	}
	s.Salts = append(s.Salts, st.Salt)
}

func (s ReplayState) clone() ReplayState {
	return ReplayState{Time: s.Time, Salts: slices.Clone(s.Salts)}
}

// ReplayStore keeps the replay states of public keys over a restart. An id is
// the hexadecimal SHA-256 of a public key, so safe as a file name. Both methods
// are called from one goroutine at a time.
type ReplayStore interface {
	// Load returns the zero state for an unknown id. With an error, the
	// state is the zero one and the caller goes on with it.
	Load(id string) (ReplayState, error)
	Save(id string, s ReplayState) error
}

func replayID(pub ed25519.PublicKey) string {
	h := sha256.Sum256(pub)
	return hex.EncodeToString(h[:])
}

// FileStore is a [ReplayStore] with one JSON file of mode 0600 for each key:
//
//	{"time":1700000000,"salts":["0a1b2c3d"]}
//
// The name is the id. Files are replaced by rename(2), so they are whole.
type FileStore struct {
	Dir string // made with mode 0700 when first needed
}

var _ ReplayStore = FileStore{}

type replayFile struct {
	Time  int64    `json:"time"`
	Salts []string `json:"salts"`
}

// maxReplayFile is several times what maxSalts salts take, in bytes.
const maxReplayFile = 1 << 14

// Load reads the state of id. A file that does not exist is the zero state; one
// that is damaged is too, with an error.
func (s FileStore) Load(id string) (ReplayState, error) {
	p, err := s.path(id)
	if err != nil {
		return ReplayState{}, err
	}
	f, err := os.Open(p)
	if errors.Is(err, fs.ErrNotExist) {
		return ReplayState{}, nil
	}
	if err != nil {
		return ReplayState{}, fmt.Errorf("replay state: %w", err)
	}
	defer f.Close()

	b, err := io.ReadAll(io.LimitReader(f, maxReplayFile+1))
	if err != nil {
		return ReplayState{}, fmt.Errorf("replay state: %w", err)
	}
	st, err := parseReplay(b)
	if err != nil {
		return ReplayState{}, fmt.Errorf("replay state %s is damaged: %w", p, err)
	}
	return st, nil
}

// Save replaces the state of id, and syncs it: a power cut must not open the
// door to what was sent before it.
func (s FileStore) Save(id string, st ReplayState) (err error) {
	p, err := s.path(id)
	if err != nil {
		return err
	}
	b, err := formatReplay(st)
	if err != nil {
		return fmt.Errorf("replay state: %w", err)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("replay state: %w", err)
	}
	// CreateTemp's mode is 0600.
	f, err := os.CreateTemp(s.Dir, ".replay-")
	if err != nil {
		return fmt.Errorf("replay state: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), p)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("replay state: %w", err)
	}
	return nil
}

func (s FileStore) path(id string) (string, error) {
	if b, err := hex.DecodeString(id); err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("replay state: %q is not a SHA-256", id)
	}
	return filepath.Join(s.Dir, id), nil
}

func formatReplay(st ReplayState) ([]byte, error) {
	f := replayFile{Time: st.Time, Salts: []string{}}
	for _, s := range st.Salts {
		f.Salts = append(f.Salts, hex.EncodeToString(s[:]))
	}
	b, err := json.Marshal(f)
	return append(b, '\n'), err
}

func parseReplay(b []byte) (ReplayState, error) {
	if len(b) > maxReplayFile {
		return ReplayState{}, errors.New("too long")
	}
	var f replayFile
	if err := json.Unmarshal(b, &f); err != nil {
		return ReplayState{}, err
	}
	if f.Time < 0 || f.Time >= 1<<(8*timeLen) {
		return ReplayState{}, errors.New("time out of range")
	}
	if len(f.Salts) > maxSalts {
		return ReplayState{}, errors.New("too many salts")
	}
	st := ReplayState{Time: f.Time}
	for _, s := range f.Salts {
		v, err := hex.DecodeString(s)
		if err != nil || len(v) != saltLen {
			return ReplayState{}, errors.New("a salt is not of 4 bytes in hexadecimal")
		}
		st.Salts = append(st.Salts, [4]byte(v))
	}
	return st, nil
}

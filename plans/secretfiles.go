package plans

// secretFiles are where a script finds what it must not hold itself. A name is
// empty where the setting was given as text.
type secretFiles struct {
	token, key, secret string
}

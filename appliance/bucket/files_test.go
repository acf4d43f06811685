package bucket

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A name that is a folder is no object, and nothing below it is lost.
func TestAFolderIsNotDeleted(t *testing.T) {
	ctx := context.Background()
	root := filepath.Join(t.TempDir(), "bucket")
	b, err := openFiles(root)
	require.NoError(t, err)
	for _, name := range []string{"a/b/c", "a/b/d", "e"} {
		require.NoError(t, b.Upload(ctx, name, strings.NewReader("x")))
	}
	outside := filepath.Join(filepath.Dir(root), "outside")
	require.NoError(t, os.WriteFile(outside, nil, 0o600))
	for _, name := range []string{"a", "a/b", "a/b/", "", ".", "../outside", uploadDir} {
		require.Error(t, b.Delete(ctx, name), name)
	}
	require.FileExists(t, outside)
	for _, name := range []string{"nothing", "a/nothing/at/all", "e/f"} {
		require.NoError(t, b.Delete(ctx, name), name)
	}
	for _, name := range []string{"a/b/c", "a/b/d", "e"} {
		there, err := b.Exists(ctx, name)
		require.NoError(t, err)
		require.True(t, there, name)
	}
	require.NoError(t, b.Delete(ctx, "a/b/c"))
	require.NoError(t, b.Delete(ctx, "a/b/d"))
	require.NoDirExists(t, filepath.Join(root, "a"))
	require.NoError(t, b.Delete(ctx, "e"))
	require.DirExists(t, root)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, b.Delete(canceled, "e"), context.Canceled)
}

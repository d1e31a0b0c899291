package android.content;

public abstract class ContentResolver {
    public final java.io.InputStream openInputStream(android.net.Uri uri) throws java.io.FileNotFoundException { throw new RuntimeException(); }
    public final android.database.Cursor query(android.net.Uri uri, String[] columns, String where, String[] values, String order) { throw new RuntimeException(); }
}

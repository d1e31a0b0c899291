package android.content;

public class ContextWrapper extends Context {
    public ContextWrapper(Context base) {}
    public Object getSystemService(String name) { throw new RuntimeException(); }
    public java.io.File getFilesDir() { throw new RuntimeException(); }
    public java.io.File getNoBackupFilesDir() { throw new RuntimeException(); }
    public java.io.File getCacheDir() { throw new RuntimeException(); }
    public java.io.File getExternalFilesDir(String type) { throw new RuntimeException(); }
    public ContentResolver getContentResolver() { throw new RuntimeException(); }
    public Context getApplicationContext() { throw new RuntimeException(); }
    public String getPackageName() { throw new RuntimeException(); }
    public android.content.res.Resources getResources() { throw new RuntimeException(); }
}

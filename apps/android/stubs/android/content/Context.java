package android.content;

public abstract class Context {
    public static final String ACTIVITY_SERVICE = "activity";
    public static final String POWER_SERVICE = "power";
    public abstract Object getSystemService(String name);
    public abstract java.io.File getFilesDir();
    public abstract java.io.File getNoBackupFilesDir();
    public abstract java.io.File getCacheDir();
    public abstract java.io.File getExternalFilesDir(String type);
    public abstract ContentResolver getContentResolver();
    public abstract Context getApplicationContext();
    public abstract String getPackageName();
    public abstract android.content.res.Resources getResources();
    public final String getString(int id) { throw new RuntimeException(); }
    public final String getString(int id, Object... values) { throw new RuntimeException(); }
    public final int getColor(int id) { throw new RuntimeException(); }
}
